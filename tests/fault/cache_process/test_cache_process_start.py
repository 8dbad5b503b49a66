"""A start that cannot work says why in one line and ends with exit status 2."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from kvtier.blocks import Tier
from kvtier.v1 import cache_pb2, cache_pb2_grpc
from storage.ssd.format import ENCRYPTED_FORMAT_VERSION, MARKER_FILE, Marker, pack_marker

SMALL = ("ssd.capacity_bytes=32MiB", "ssd.segment_bytes=8MiB")
"""Fits `small_disk`."""


def refused(process: Any, reason: str) -> str:
    status, out, err = process.end()
    last = err.strip().splitlines()[-1]
    assert (status, out) == (2, ""), err
    assert last.startswith(f"kvtier-cache: {reason}: ")
    assert "Traceback" not in err
    return str(last)


def until_written(address: str) -> None:
    """Polls until no committed block waits for the SSD."""
    with grpc.insecure_channel(address) as channel:
        stub = cache_pb2_grpc.CacheServiceStub(channel)
        for _ in range(500):
            stats = stub.GetStats(cache_pb2.GetStatsRequest(), timeout=5)
            if stats.pending_write_count == 0:
                return
            threading.Event().wait(0.02)
    raise AssertionError("the SSD never caught up")


def test_a_port_in_use(start: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert address in refused(start(f"listen={address}"), "ADDRESS_IN_USE")


def test_a_metrics_port_in_use(start: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert address in refused(start(f"metrics_listen={address}"), "ADDRESS_IN_USE")


def test_a_data_directory_that_another_process_uses(start: Any, directory: Path) -> None:
    start().ready()
    other = str(directory / "other.sock")
    refused(start(f"socket_path={other}"), "DATA_DIRECTORY_LOCKED")


def test_an_arena_socket_that_another_process_listens_on(start: Any, directory: Path) -> None:
    first = start()
    first.ready()
    shared = f"socket_path={first.said['arena_socket']}"
    refused(start(shared, where=directory / "second"), "ADDRESS_IN_USE")
    assert os.path.exists(first.said["arena_socket"])


def test_a_data_directory_that_is_a_file(start: Any, directory: Path) -> None:
    (directory / "file").write_text("in the way")
    refused(start(where=directory / "file"), "DATA_DIRECTORY_READ_ONLY")


def test_a_data_directory_with_other_peoples_files(start: Any, directory: Path) -> None:
    (directory / "ssd").mkdir()
    (directory / "ssd" / "letters.txt").write_text("dear diary")
    refused(start(), "DATA_DIRECTORY_FOREIGN")
    assert (directory / "ssd" / "letters.txt").read_text() == "dear diary"


def test_an_ssd_larger_than_the_disk(start: Any) -> None:
    refused(start("ssd.capacity_bytes=900TiB", "ssd.segment_bytes=1TiB"), "DATA_DIRECTORY_FULL")


def test_a_read_only_data_directory(
    start: Any, connect: Any, payloads: Any, directory: Path, small_disk: Any
) -> None:
    """Refused when it is new and when it has blocks, which are there again once it is writable."""
    where, smaller = (
        small_disk.path / "data",
        ("ssd.capacity_bytes=32MiB", "ssd.segment_bytes=8MiB"),
    )
    settings = (*smaller, f"socket_path={directory}/arena.sock")
    small_disk.remount("ro")
    assert "Read-only" in refused(start(*settings, where=where), "DATA_DIRECTORY_READ_ONLY")
    small_disk.remount("rw")
    first, chain = start(*settings, where=where), payloads.chain(1, 4)
    connect(first.ready()).store("r", chain, payloads.pages(chain))
    first.signal(signal.SIGTERM)
    assert first.end()[0] == 0
    small_disk.remount("ro")
    assert "Read-only" in refused(start(*settings, where=where), "DATA_DIRECTORY_READ_ONLY")
    small_disk.remount("rw")
    restored = payloads.blank(4)
    result = connect(start(*settings, where=where).ready()).restore("r", chain, restored, 10)
    assert result.tiers == (Tier.SSD,) * 4
    assert all(map(np.array_equal, restored, payloads.pages(chain)))


def test_a_disk_that_is_full(
    start: Any, connect: Any, payloads: Any, directory: Path, small_disk: Any
) -> None:
    """A full disk stops a start, costs a running service its SSD only, and loses no block on it."""
    where, smaller = (
        small_disk.path / "data",
        ("ssd.capacity_bytes=32MiB", "ssd.segment_bytes=8MiB"),
    )
    settings = (*smaller, f"socket_path={directory}/arena.sock")
    small_disk.fill()
    assert "free" in refused(start(*settings, where=where), "DATA_DIRECTORY_FULL")
    small_disk.empty()
    service, chain = start(*settings, where=where), payloads.chain(0, 4)
    client = connect(service.ready())
    client.store("r", chain, payloads.pages(chain))
    until_written(service.said["listen"])
    small_disk.fill()
    for number in range(1, 9):
        more, restored = payloads.chain(number, 8), payloads.blank(8)
        assert client.store("r", more, payloads.pages(more)).stored_count == 8
        assert client.restore("r", more, restored, 10).tiers == (Tier.HOST,) * 8
        assert all(map(np.array_equal, restored, payloads.pages(more)))
        until_written(service.said["listen"])
    service.signal(signal.SIGTERM)
    status, _, said = service.end()
    assert (status, "Traceback" in said) == (0, False), said
    assert "free" in refused(start(*settings, where=where), "DATA_DIRECTORY_FULL")
    small_disk.empty()
    client = connect(start(*settings, where=where).ready())
    for number in range(9):
        more = payloads.chain(number, 8 if number else 4)
        restored = payloads.blank(len(more))
        count = len(client.restore("r", more, restored, 10).tiers)
        assert count == len(more) or number
        assert all(map(np.array_equal, restored[:count], payloads.pages(more)[:count]))


def test_a_data_directory_of_a_newer_format(start: Any, directory: Path) -> None:
    (directory / "ssd").mkdir()
    newer = pack_marker(Marker(ENCRYPTED_FORMAT_VERSION + 1, 16 << 20))
    (directory / "ssd" / MARKER_FILE).write_bytes(newer)
    assert "upgrade" in refused(start(), "FORMAT_TOO_NEW")
    assert [path.name for path in (directory / "ssd").iterdir()] == [MARKER_FILE]
    assert (directory / "ssd" / MARKER_FILE).read_bytes() == newer


def test_a_unix_socket_that_is_a_file_or_another_services(start: Any, directory: Path) -> None:
    file = directory / "letter"
    file.write_text("dear diary")
    refused(start(f"unix_socket={file}"), "ADDRESS_IN_USE")
    refused(start(f"socket_path={file}"), "ADDRESS_IN_USE")
    assert file.read_text() == "dear diary"
    first = start()
    first.ready()
    other = ("ssd.enabled=false", f"unix_socket={first.said['arena_socket']}")
    refused(start(*other, where=directory / "second"), "ADDRESS_IN_USE")


@pytest.mark.parametrize("raw", [b"= 1", b"\xff\x00", b"x = " + b"[" * 100_000, b"nope = 1"])
def test_a_settings_file_that_is_none(tmp_path: Path, raw: bytes) -> None:
    file = tmp_path / "cache.toml"
    file.write_bytes(raw)
    result = run("--config", str(file))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("kvtier-cache: INVALID_SETTINGS: ")
    assert "Traceback" not in result.stderr


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "cache_service", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_unusable_settings_are_listed_all_at_once() -> None:
    result = run("--set", "listen=nowhere", "--set", "host.capacity_bytes=-1", "--set", "typo=1")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("kvtier-cache: INVALID_SETTINGS: ")
    for key in ("listen", "host.capacity_bytes", "typo"):
        assert key in result.stderr


def test_print_config_shows_every_setting_and_where_it_comes_from() -> None:
    result = run("--print-config", "--set", "host.capacity_bytes=1GiB")
    assert result.returncode == 0
    assert "host.capacity_bytes = 1073741824    # command line" in result.stdout
    assert 'listen = "127.0.0.1:7411"    # default' in result.stdout


def stats(*arguments: str) -> "subprocess.CompletedProcess[str]":
    program = "from cache_service.commands import app; app()"
    return subprocess.run(
        [sys.executable, "-c", program, "stats", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_stats_are_one_json_object_or_a_table(start: Any) -> None:
    address = start().ready()
    data = json.loads(stats("--address", address, "--json").stdout)
    assert [tier["tier"] for tier in data["tiers"]] == ["host", "ssd"]
    assert data["tiers"][0]["capacity_bytes"] == 64 * 1024**2
    assert data["recovery"]["kept_count"] == 0
    table = stats("--address", address)
    assert table.returncode == 0
    assert "host" in table.stdout


def test_stats_of_an_absent_service_say_so_on_standard_error() -> None:
    result = stats("--address", "127.0.0.1:1")
    assert (result.returncode, result.stdout) == (1, "")
    assert "127.0.0.1:1" in result.stderr
    assert "Traceback" not in result.stderr
