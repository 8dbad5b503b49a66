"""`kvtier bench path` says what it promises, under the names that it promises."""

import json
import ssl
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer import Typer
from typer.testing import CliRunner

from kvtier.bench.errors import BenchError
from worker.bench import path as command
from worker.bench import peer_process
from worker.bench.memcpy import Memcpy
from worker.bench.memory import PathMemory
from worker.bench.path_tables import show
from worker.bench.raw_socket import raw_socket
from worker.bench.settings import OTHER_HOST, SAME_HOST, UNDER_TLS, PathSettings
from worker.bench.tls import bench_tls
from worker.bench.turns import WARM_UPS, Turn, compared, row_of, take_turns

ROW_KEYS = {
    "block_bytes",
    "store_GBps",
    "restore_GBps",
    "store_ratio_to_limit",
    "restore_ratio_to_limit",
    "one_block_restore_p50_us",
    "one_block_restore_p99_us",
}
PEER_KEYS = {"name", "transport", "block_bytes", "store_GBps", "restore_GBps"}
BLOCK_BYTES = 64 << 10

PEER_THAT_IS_THERE = '''
"""A dictionary that says it is a cache."""

import numpy as np

from worker.bench.peers.driver import serve


class Dictionary:
    version = "dict 1"

    def __init__(self, terms, stack):
        self._size = terms.block_bytes * terms.block_count
        self._kept = {}

    def pages(self):
        print("this is no answer")
        return np.ones(self._size, np.uint8)

    def store(self, keys, pages):
        self._kept.update((key, page.tobytes()) for key, page in zip(keys, pages))

    def restore(self, keys, pages):
        for key, page in zip(keys, pages):
            page[:] = np.frombuffer(self._kept[key], np.uint8)

    def forget(self, keys):
        for key in keys:
            self._kept.pop(key, None)


if __name__ == "__main__":
    serve(Dictionary)
'''


def settings(**other: object) -> PathSettings:
    sizes: dict[str, object] = {
        "block_bytes": (BLOCK_BYTES,),
        "prefix_bytes": 1 << 20,
        "rounds": 2,
        "single_blocks": 3,
        "fresh_starts": 1,
    }
    return PathSettings(**(sizes | other))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def result() -> Any:
    return json.loads(json.dumps(command.run(settings(tls=True))))


def test_a_small_run_has_every_key(result: Any) -> None:
    assert result["memcpy_GBps"] > 0
    assert result["raw_socket_GBps"] > 0
    assert result["raw_tls_socket_GBps"] > 0
    for name, transports in (
        ("same_host", SAME_HOST),
        ("other_host", OTHER_HOST),
        ("under_tls", UNDER_TLS),
    ):
        assert [row["transport"] for row in result[name]] == list(transports)
        for row in result[name]:
            assert set(row) >= ROW_KEYS
            assert row["block_bytes"] == BLOCK_BYTES
            assert row["one_block_restore_p50_us"] <= row["one_block_restore_p99_us"]
            for verb in ("store", "restore"):
                assert row[f"{verb}_client_cpu_seconds_per_GB"] > 0
                assert row[f"{verb}_service_cpu_seconds_per_GB"] > 0
    assert all(row["first_store_GBps"] > 0 for row in result["same_host"])


def test_peers_that_nobody_looked_for_are_named(result: Any) -> None:
    assert [(row["name"], row["transport"]) for row in result["peers"]] == [
        (kind.name, kind.transport) for kind in peer_process.PEERS
    ]
    for row in result["peers"]:
        assert set(row) >= PEER_KEYS
        assert row["store_GBps"] is None
        assert "--peers" in row["absent"]


def test_peers_take_turns_where_they_are_installed(tmp_path, monkeypatch, capsys) -> None:
    """By an interpreter that has one of two: this one, which the constraints give no redis."""
    peers = tmp_path / "worker" / "bench" / "peers"
    peers.mkdir(parents=True)
    own = Path(peer_process.__file__).parent / "peers"
    for name in ("driver.py", "redis_store.py"):
        (peers / name).write_text((own / name).read_text())
    for folder in (peers, peers.parent, peers.parent.parent):
        (folder / "__init__.py").touch()
    (peers / "dictionary.py").write_text(PEER_THAT_IS_THERE)
    monkeypatch.setattr("worker.bench.peer_process.worker.__path__", [str(tmp_path / "worker")])
    kinds = (
        peer_process.PeerKind("dictionary", "dictionary", "memory", True),
        peer_process.PeerKind("redis", "redis_store", "unix", True),
    )
    monkeypatch.setattr("worker.bench.measure.PEERS", kinds)
    there, absent = command.run(settings(peers=Path(sys.executable)))["peers"]
    assert set(there) >= PEER_KEYS
    assert (there["version"], there["absent"]) == ("dict 1", None)
    assert there["store_GBps"] > 0
    assert there["our_restore_ratio_to_it"] > 0
    assert set(absent) >= PEER_KEYS
    assert absent["absent"].startswith("not installed: pip install redis")
    assert capsys.readouterr().out == ""


def test_tables_have_a_line_for_everything(result: Any, capsys) -> None:
    show(Console(width=100), result)
    text = capsys.readouterr().out
    assert "64 KiB" in text
    assert "raw TLS socket" in text
    assert "absent: mooncake (shm)" in text
    assert "…" not in text


def test_sizes_that_measure_nothing_are_refused() -> None:
    with pytest.raises(BenchError, match="shorter than a block"):
        settings(prefix_bytes=BLOCK_BYTES - 1)
    with pytest.raises(BenchError, match="at least 1 each"):
        settings(rounds=0)
    app = Typer()
    app.command()(command.path)
    for wrong in (["--prefix", "1KiB"], ["--blocks", "much"]):
        outcome = CliRunner().invoke(app, wrong)
        assert outcome.exit_code == 1
        assert outcome.stdout == ""


def test_limits_move_every_byte() -> None:
    memory = PathMemory(4096, 64 << 10)
    Memcpy(memory, 2).turn(0)
    memory.forget()
    with pytest.raises(BenchError, match="a restored byte differs"):
        memory.verify("nobody")
    with raw_socket(memory, 2) as limit:
        assert len(limit.turn(0).single_seconds) == 2


class _Runner:
    def __init__(self, name: str, said: list[str]) -> None:
        self._name, self._said = name, said

    def turn(self, number: int) -> Turn:
        self._said.append(self._name)
        return Turn(float(number + 1), 2.0, (0.5,), {"store_client": 1.0})


def test_turns_rotate_and_warm_ups_do_not_count() -> None:
    said: list[str] = []
    first, second = take_turns([_Runner("a", said), _Runner("b", said)], 2, str)
    assert len(said) == 2 * (WARM_UPS + 2)
    assert "".join(said[:8]) == "abbaabba"
    assert [turn.store_seconds for turn in first] == [WARM_UPS + 1, WARM_UPS + 2]
    row = row_of(first, 10**9)
    assert row["restore_GBps"] == 0.5
    assert row["one_block_restore_p99_us"] == 0.5e6
    assert row["store_client_cpu_seconds_per_GB"] == 1.0
    assert compared(first, second, "limit") == {
        "store_ratio_to_limit": 1.0,
        "restore_ratio_to_limit": 1.0,
    }


def test_quick_changes_only_what_was_not_given() -> None:
    app = Typer()
    app.command()(command.path)
    given = ["--blocks", "64KiB", "--prefix", "1MiB", "--rounds", "1"]
    outcome = CliRunner().invoke(app, [*given, "--quick", "--json"])
    assert outcome.exit_code == 0, outcome.output
    said = json.loads(outcome.stdout)
    assert (said["under_tls"], said["raw_tls_socket_GBps"]) == ([], None)
    used = said["settings"]
    assert used["block_bytes"] == [64 << 10]
    assert used["prefix_bytes"] == 1 << 20
    assert used["rounds"] == 1
    assert (used["single_blocks"], used["fresh_starts"]) == (30, 1)


def test_the_limit_under_tls_is_encrypted_both_ways() -> None:
    memory = PathMemory(4096, 64 << 10)
    with bench_tls() as tls, raw_socket(memory, 2, tls) as limit:
        assert isinstance(limit._connection, ssl.SSLSocket)
        assert limit._connection.version() == "TLSv1.3"
        assert limit._connection.getpeercert()
        assert len(limit.turn(0).single_seconds) == 2
