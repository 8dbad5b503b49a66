"""kill -9 in the middle of streams of events, a full disk, and a start that cannot be."""

import json
import random
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest

from kvtier.errors import read_error
from kvtier.v1 import usage_pb2 as pb
from kvtier.v1 import usage_pb2_grpc

NOW = 1_755_000_000 * 10**9
BATCH = 50

Process = subprocess.Popen[str]
Start = Callable[..., tuple[Process, str]]


def _event(number: int) -> pb.UsageEvent:
    hit, miss = number * 64, number % 64 + 1
    event = pb.UsageEvent(
        request_id=f"request-{number}",
        schema_version=1,
        tenant_id=f"tenant-{number % 3}",
        model="demo",
        end_reason=pb.END_REASON_STOP,
        tokens=pb.TokenUsage(
            prompt_tokens=hit + miss,
            hit_tokens=hit,
            hit_tokens_by_tier=pb.HitTokensByTier(host=hit),
            miss_tokens=miss,
            completion_tokens=number % 100,
        ),
    )
    event.start_time.FromNanoseconds(NOW)
    event.end_time.FromNanoseconds(NOW + number)
    return event


def _command(directory: Path, *settings: str) -> list[str]:
    command = [sys.executable, "-m", "billing", "--set", "listen=127.0.0.1:0"]
    command += ["--set", "security.development=true"]
    for setting in (f"data_directory={directory}", "log.level=WARNING", *settings):
        command += ["--set", setting]
    return command


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    running: list[Process] = []

    def start_(where: Path | None = None) -> tuple[Process, str]:
        with (tmp_path / "log").open("a") as log:
            process = subprocess.Popen(
                _command(where or tmp_path / "billing"),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        running.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (tmp_path / "log").read_text()
        return process, json.loads(line)["listen"]

    yield start_
    for process in running:
        process.kill()
        process.communicate()


class Deliverer(threading.Thread):
    """Sends batches one after the other until one fails; notes what was acknowledged."""

    def __init__(self, address: str, batches: list[list[pb.UsageEvent]]) -> None:
        super().__init__()
        self.address = address
        self.batches = batches
        self.acknowledged: list[str] = []
        self.sent = threading.Event()
        """Set once a few batches are through."""

    def run(self) -> None:
        with grpc.insecure_channel(self.address) as channel:
            stub = usage_pb2_grpc.UsageServiceStub(channel)
            for number, batch in enumerate(self.batches):
                try:
                    stub.RecordUsage(pb.RecordUsageRequest(events=batch), timeout=30)
                except grpc.RpcError:
                    break
                self.acknowledged += [event.request_id for event in batch]
                if number == 2:
                    self.sent.set()
            self.sent.set()


def _record(address: str, events: list[pb.UsageEvent]) -> list[pb.RecordOutcome]:
    with grpc.insecure_channel(address) as channel:
        stub = usage_pb2_grpc.UsageServiceStub(channel)
        return list(stub.RecordUsage(pb.RecordUsageRequest(events=events), timeout=30).outcomes)


def _verify(address: str) -> pb.VerifyLedgerResponse:
    with grpc.insecure_channel(address) as channel:
        stub = usage_pb2_grpc.UsageServiceStub(channel)
        found: pb.VerifyLedgerResponse = stub.VerifyLedger(pb.VerifyLedgerRequest(), timeout=60)
        return found


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_kill_9_in_the_middle_of_streams_leaves_each_event_exactly_once(
    start: Start, seed: int
) -> None:
    events = [_event(number) for number in range(1, 3_001)]
    chance = random.Random(seed)
    acknowledged: set[str] = set()
    for _ in range(2):
        process, address = start()
        deliverers = []
        for _ in range(3):
            # Each sends everything, in an order of its own: most events are redeliveries.
            order = chance.sample(events, len(events))
            batches = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
            deliverers.append(Deliverer(address, batches))
        for deliverer in deliverers:
            deliverer.start()
        for deliverer in deliverers:
            assert deliverer.sent.wait(60)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for deliverer in deliverers:
            deliverer.join(60)
            acknowledged.update(deliverer.acknowledged)
        assert len(acknowledged) >= BATCH

    process, address = start()
    outcomes = [
        outcome
        for i in range(0, len(events), 1_000)
        for outcome in _record(address, events[i : i + 1_000])
    ]
    lost = [
        outcome.request_id
        for outcome in outcomes
        if outcome.request_id in acknowledged and outcome.status != pb.RECORD_STATUS_DUPLICATE
    ]
    assert lost == [], "acknowledged, and gone after the kill"
    assert sorted(outcome.ledger_position for outcome in outcomes) == list(range(1, 3_001))
    found = _verify(address)
    assert (found.verified, found.problem, found.entry_count) == (True, "", 3_000)
    assert found.posting_count == sum(3 + (number % 100 > 0) for number in range(1, 3_001))


def test_sigterm_under_load_ends_in_order_and_keeps_what_it_acknowledged(start: Start) -> None:
    process, address = start()
    events = [_event(number) for number in range(1, 20_001)]
    batches = [events[i : i + BATCH] for i in range(0, len(events), BATCH)]
    deliverer = Deliverer(address, batches)
    deliverer.start()
    assert deliverer.sent.wait(60)
    process.terminate()
    assert process.wait(60) == 0
    deliverer.join(60)
    assert deliverer.acknowledged
    _, address = start()
    kept = [event for event in events if event.request_id in set(deliverer.acknowledged)]
    for i in range(0, len(kept), 1_000):
        for outcome in _record(address, kept[i : i + 1_000]):
            assert outcome.status == pb.RECORD_STATUS_DUPLICATE
    assert _verify(address).verified


def test_a_disk_without_room_refuses_and_takes_everything_later(start: Start) -> None:
    process, address = start()
    assert len(_record(address, [_event(1)])) == 1
    # No file of the process may grow past 1 byte from here on: as good as a full disk.
    unlimited = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1, unlimited[1]))
    events = [_event(number) for number in range(2, 500)]
    with pytest.raises(grpc.RpcError) as failed:
        _record(address, events)
    error = read_error(failed.value)
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "LEDGER_UNAVAILABLE")
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, unlimited)
    outcomes = _record(address, events)
    assert {outcome.status for outcome in outcomes} == {pb.RECORD_STATUS_ACCEPTED}
    assert [outcome.ledger_position for outcome in outcomes] == list(range(2, 500))
    assert _verify(address).verified


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    """Starts a billing process that must end with status 2; what it says on standard error."""

    def run(*settings: str, **options: Any) -> str:
        done = subprocess.run(
            _command(tmp_path / "billing", *settings),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            **options,
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert "Traceback" not in done.stderr
        return done.stderr

    return run


def test_a_bad_price_book_stops_the_start_and_names_the_line(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    book = tmp_path / "prices.toml"
    shipped = Path(__file__).parents[2] / "billing" / "default_prices.toml"
    lines = shipped.read_text().splitlines()
    number = lines.index('hit = "0.1"')
    lines[number] = "hit = 0.1"
    book.write_text("\n".join(lines))
    said = refused(f"price_book={book}")
    assert "PRICE_BOOK_INVALID" in said
    assert f"prices.toml:{number + 1}: versions[1].prices[1].hit" in said


def test_a_second_service_on_the_same_ledger_does_not_start(
    start: Start, refused: Callable[..., str]
) -> None:
    process, address = start()
    said = refused()
    assert "LEDGER_LOCKED" in said
    assert f"process {process.pid}" in said
    assert len(_record(address, [_event(1)])) == 1


def test_a_ledger_of_a_newer_kvtier_stops_the_start(
    tmp_path: Path, start: Start, refused: Callable[..., str]
) -> None:
    process, _ = start()
    process.terminate()
    process.wait(60)
    with closing(sqlite3.connect(tmp_path / "billing" / "ledger.sqlite")) as connection:
        connection.execute("DROP TRIGGER ledger_meta_no_update")
        connection.execute("UPDATE ledger_meta SET value = 9 WHERE key = 'format_version'")
        connection.commit()
    assert "FORMAT_TOO_NEW" in refused()


def test_a_port_in_use_stops_the_start(refused: Callable[..., str]) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        assert "ADDRESS_IN_USE" in refused(f"listen=127.0.0.1:{port}")
        assert "ADDRESS_IN_USE" in refused(f"metrics_listen=127.0.0.1:{port}")


def test_a_read_only_disk_stops_the_start_and_loses_nothing(
    tmp_path: Path, start: Start, refused: Callable[..., str], small_disk: Any
) -> None:
    where = f"data_directory={small_disk.path / 'billing'}"
    small_disk.remount("ro")
    said = refused(where)
    assert "LEDGER_READ_ONLY" in said
    assert "--set data_directory=DIR" in said
    small_disk.remount("rw")
    process, address = start(small_disk.path / "billing")
    _record(address, [_event(1)])
    process.terminate()
    process.wait(60)
    small_disk.remount("ro")
    assert "LEDGER_READ_ONLY" in refused(where)
    small_disk.remount("rw")
    _, address = start(small_disk.path / "billing")
    (outcome,) = _record(address, [_event(1)])
    assert outcome.status == pb.RECORD_STATUS_DUPLICATE


def test_a_full_disk_stops_the_start_and_keeps_what_was_recorded(
    start: Start, refused: Callable[..., str], small_disk: Any
) -> None:
    where = small_disk.path / "billing"
    small_disk.fill()
    for _ in range(2):  # the second finds what the first left
        said = refused(f"data_directory={where}")
        assert "LEDGER_UNAVAILABLE" in said
        assert "free some space" in said
    small_disk.empty()
    process, address = start(where)
    _record(address, [_event(1)])
    small_disk.fill()
    events = [_event(number) for number in range(2, 1_000)]
    with pytest.raises(grpc.RpcError) as failed:
        _record(address, events)
    error = read_error(failed.value)
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "LEDGER_UNAVAILABLE")
    assert "free some space" in error.message
    process.terminate()
    assert process.wait(60) == 0
    small_disk.empty()
    _, address = start(where)
    outcomes = _record(address, [_event(1), *events])
    assert outcomes[0].status == pb.RECORD_STATUS_DUPLICATE
    assert {outcome.status for outcome in outcomes[1:]} == {pb.RECORD_STATUS_ACCEPTED}
    assert _verify(address).entry_count == 999


@pytest.mark.parametrize("raw", [b"format = 1\n[", b"\xff\x00", b"x = " + b"[" * 100_000])
def test_a_price_book_that_is_none_stops_the_start(
    tmp_path: Path, refused: Callable[..., str], raw: bytes
) -> None:
    book = tmp_path / "prices.toml"
    book.write_bytes(raw)
    said = refused(f"price_book={book}")
    assert "PRICE_BOOK_INVALID" in said
    assert str(book) in said
