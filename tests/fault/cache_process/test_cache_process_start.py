"""A start that cannot work says why in one line and ends with exit status 2."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def refused(process: Any, reason: str) -> str:
    status, out, err = process.end()
    last = err.strip().splitlines()[-1]
    assert (status, out) == (2, ""), err
    assert last.startswith("kvtier-cache: ")
    assert f"[{reason}]" in last
    assert "Traceback" not in err
    return str(last)


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


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_data_directory(start: Any, directory: Path) -> None:
    directory.chmod(0o500)
    refused(start(), "DATA_DIRECTORY_READ_ONLY")


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
