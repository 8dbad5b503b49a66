"""The audit log on its loop: callers that go away, a stop with calls open, refusals in a storm."""

import asyncio
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cache_service.audit.files import AuditFiles
from cache_service.audit.log import AuditLog
from cache_service.audit.refusals import REFUSED_MAX
from cache_service.audit.walk import walk
from cache_service.errors import AuditUnavailableError
from kvtier.principals import Principal, Role
from kvtier.serving import ShuttingDownError
from kvtier.v1 import cache_pb2 as pb

OPERATOR = Principal("k" * 64, frozenset({Role.OPERATOR}))
REQUEST = pb.VerifyBlocksRequest(bytes_per_second=5)


def lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "000001.jsonl").read_text().splitlines()]


def outcomes(directory: Path, method: str) -> list[str]:
    return [line["outcome"] for line in lines(directory) if line["method"] == method]


class SlowDisk:
    """Real writes, each of which waits until it is let through."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._real = os.write
        self._passes = threading.Event()
        self._passes.set()
        self._waits = threading.Event()
        patch.setattr(os, "write", self._write)

    def _write(self, fd: int, line: bytes) -> int:
        if threading.current_thread().name.startswith("audit"):
            self._waits.set()
            assert self._passes.wait(10)
        return self._real(fd, line)

    async def hold(self) -> None:
        """Returns when a line waits."""
        assert await asyncio.to_thread(self._waits.wait, 10)

    def stop(self) -> None:
        self._passes.clear()
        self._waits.clear()

    def go_on(self) -> None:
        self._passes.set()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDisk]:
    disk = SlowDisk(monkeypatch)
    yield disk
    disk.go_on()


class Call:
    """A call in a task of its own, whose handler runs until told to end."""

    def __init__(self, log: AuditLog, method: str) -> None:
        self.began, self._ends = asyncio.Event(), asyncio.Event()
        self._fails: Exception | None = None
        self.task = asyncio.ensure_future(self._run(log, method))

    async def _run(self, log: AuditLog, method: str) -> None:
        async with log.call(OPERATOR, method, REQUEST):
            self.began.set()
            await self._ends.wait()
            if self._fails is not None:
                raise self._fails

    async def end(self, error: Exception | None = None) -> None:
        """Lets the handler end; returns when its line has been handed on."""
        self._fails = error
        self._ends.set()
        for _ in range(20):
            await asyncio.sleep(0)

    async def cancel(self, times: int = 1) -> None:
        for _ in range(times):
            self.task.cancel()
            await asyncio.sleep(0)

    async def gone(self) -> None:
        with pytest.raises(asyncio.CancelledError):
            await self.task


# A caller that goes away while a line waits.


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(
    ("error", "outcome"), [(None, "done"), (RuntimeError("of the handler"), "failed")]
)
async def test_a_call_cancelled_at_its_end_has_its_line(
    tmp_path: Path, disk: SlowDisk, error: Exception | None, outcome: str, times: int
) -> None:
    log = AuditLog(tmp_path)
    call = Call(log, "/ends")
    await call.began.wait()
    disk.stop()
    before = Call(log, "/in front")
    await disk.hold()
    await call.end(error)
    await call.cancel(times)
    disk.go_on()
    await call.gone()
    await before.began.wait()
    await before.end()
    await before.task
    await log.close(10)
    assert outcomes(tmp_path, "/ends") == ["begun", outcome]


async def test_a_call_cancelled_twice_in_its_middle_has_its_line(
    tmp_path: Path, disk: SlowDisk
) -> None:
    log = AuditLog(tmp_path)
    call = Call(log, "/stops")
    await call.began.wait()
    disk.stop()
    before = Call(log, "/in front")
    await disk.hold()
    await call.cancel(3)
    disk.go_on()
    await call.gone()
    await before.began.wait()
    await before.end()
    await before.task
    await log.close(10)
    assert outcomes(tmp_path, "/stops") == ["begun", "stopped"]


@pytest.mark.parametrize("behind", [False, True])
async def test_a_call_cancelled_at_its_beginning_shows_no_crash(
    tmp_path: Path, disk: SlowDisk, behind: bool
) -> None:
    log = AuditLog(tmp_path)
    disk.stop()
    before = Call(log, "/in front") if behind else None
    if before is not None:
        await disk.hold()
    call = Call(log, "/begins")
    await disk.hold()
    await call.cancel()
    disk.go_on()
    await call.gone()
    assert not call.began.is_set()
    if before is not None:
        await before.began.wait()
        await before.end()
        await before.task
    await log.close(10)
    assert outcomes(tmp_path, "/begins") == ["begun", "stopped"]
    assert not walk(tmp_path).problem


# A stop.


async def test_a_stop_waits_for_the_lines_of_calls_that_it_cut(
    tmp_path: Path, disk: SlowDisk
) -> None:
    log = AuditLog(tmp_path)
    calls = [Call(log, f"/{number}") for number in range(5)]
    for call in calls:
        await call.began.wait()
    disk.stop()
    for call in calls:
        await call.cancel()
    closing = asyncio.ensure_future(log.close(10))
    await disk.hold()
    with pytest.raises(ShuttingDownError):
        async with log.call(OPERATOR, "/late", REQUEST):
            pass
    disk.go_on()
    await closing
    for call in calls:
        await call.gone()
    assert [outcomes(tmp_path, f"/{n}") for n in range(5)] == [["begun", "stopped"]] * 5
    assert not walk(tmp_path).problem
    assert not outcomes(tmp_path, "/late")
    AuditFiles(tmp_path).close()


async def test_a_call_that_outlives_the_stop_shows_as_begun(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    call = Call(log, "/for ever")
    await call.began.wait()
    await log.close(0.01)
    await call.end()
    with pytest.raises(AuditUnavailableError, match="closed"):
        await call.task
    assert outcomes(tmp_path, "/for ever") == ["begun"]


async def test_a_disk_that_hangs_does_not_hold_up_the_stop(tmp_path: Path, disk: SlowDisk) -> None:
    log = AuditLog(tmp_path)
    disk.stop()
    call = Call(log, "/hangs")
    await disk.hold()
    await log.close(0.01)
    disk.go_on()
    await call.began.wait()
    await call.end()
    with pytest.raises(AuditUnavailableError, match="closed"):
        await call.task


async def test_a_log_without_a_line_closes(tmp_path: Path) -> None:
    await AuditLog(tmp_path / "audit").close(10)
    assert not (tmp_path / "audit").exists()


# Refusals.

OTHER = Principal("o" * 64, frozenset({Role.BILLER}))
DECOY = Principal("d" * 64, frozenset({Role.OPERATOR}))


class Pauses:
    """Sleeps until the test lets it go on."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._asleep, self._slept = asyncio.Event(), asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self.seconds.append(seconds)
        self._slept.clear()
        self._asleep.set()
        await self._slept.wait()

    async def over(self) -> None:
        """Ends the pause; returns when the next begins."""
        await self._asleep.wait()
        self._asleep.clear()
        self._slept.set()
        await self._asleep.wait()


def refusals(directory: Path) -> list[tuple[str, list[str], str, str, int]]:
    return [
        (line["principal"][:1], line["roles"], line["method"], line["reason"], line["count"])
        for line in lines(directory)
        if line["outcome"] == "refused"
    ]


async def storm(log: AuditLog) -> None:
    for _ in range(4):
        await log.refused(OPERATOR, "/m", "ROLE_NOT_ALLOWED")
        await log.refused(OTHER, "/m", "ROLE_NOT_ALLOWED")
    await log.refused(OTHER, "/m", "ROLE_NOT_ALLOWED")
    await log.refused(OTHER, "/n", "ROLE_NOT_ALLOWED")
    await log.refused(OTHER, "/n", "ANOTHER")


STORM = [
    ("o", ["biller"], "/m", "ROLE_NOT_ALLOWED", 5),
    ("k", ["operator"], "/m", "ROLE_NOT_ALLOWED", 3),
    ("o", ["biller"], "/n", "ROLE_NOT_ALLOWED", 1),
    ("o", ["biller"], "/n", "ANOTHER", 1),
]


async def test_refusals_are_counted_under_whose_they_are(tmp_path: Path) -> None:
    pauses = Pauses()
    log = AuditLog(tmp_path, sleep=pauses.sleep)
    await storm(log)
    assert refusals(tmp_path) == [("k", ["operator"], "/m", "ROLE_NOT_ALLOWED", 1)]
    await pauses.over()
    assert refusals(tmp_path)[1:] == STORM, "written though none came after them"
    async with log.call(DECOY, "/m", REQUEST):
        await log.refused(OTHER, "/m", "ROLE_NOT_ALLOWED")
    await log.refused(DECOY, "/decoy", "DECOY")
    await log.close(10)
    assert refusals(tmp_path)[5:] == [
        ("o", ["biller"], "/m", "ROLE_NOT_ALLOWED", 1),
        ("d", ["operator"], "/decoy", "DECOY", 1),
    ]
    assert pauses.seconds == [1.0, 1.0]


async def test_a_stop_writes_the_refusals_that_wait(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, sleep=Pauses().sleep)
    await storm(log)
    await log.close(10)
    assert refusals(tmp_path)[1:] == STORM


async def test_what_does_not_fit_the_table_is_counted_together(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, sleep=Pauses().sleep)
    for number in range(REFUSED_MAX + 10):
        principal = Principal(f"{number}", frozenset({Role.BILLER}))
        await log.refused(principal, "/m", "ROLE_NOT_ALLOWED")
        await log.refused(principal, "/m", "ROLE_NOT_ALLOWED")
    await log.close(10)
    written = lines(tmp_path)[1:]
    assert [line["principal"] for line in written[:-1]] == [str(n) for n in range(REFUSED_MAX)]
    last = written[-1]
    assert (last["principal"], last["method"], last["reason"]) == ("others", "", "")
    assert sum(line["count"] for line in written) == 2 * REFUSED_MAX + 19
    assert last["count"] == 20


async def test_refusals_that_the_disk_refuses_are_written_when_it_takes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = Pauses()
    log = AuditLog(tmp_path, sleep=pauses.sleep)
    real, fails = os.write, True

    def write(fd: int, line: bytes) -> int:
        if fails and threading.current_thread().name.startswith("audit"):
            raise OSError(28, "No space left on device")
        return real(fd, line)

    monkeypatch.setattr(os, "write", write)
    await storm(log)
    await pauses.over()
    await pauses.over()
    assert pauses.seconds == [2.0, 4.0, 8.0]
    fails = False
    await pauses.over()
    assert pauses.seconds[3:] == [1.0]
    await log.close(10)
    operators = ("k", ["operator"], "/m", "ROLE_NOT_ALLOWED", 4)
    assert refusals(tmp_path) == [operators, STORM[0], *STORM[2:]]


async def test_a_wall_clock_set_back_silences_no_refusal(tmp_path: Path) -> None:
    wall, pauses = [1000.0], Pauses()
    log = AuditLog(tmp_path, lambda: wall[0], pauses.sleep)
    await log.refused(OPERATOR, "/m", "ROLE_NOT_ALLOWED")
    wall[0] = 10.0
    await log.refused(OPERATOR, "/m", "ROLE_NOT_ALLOWED")
    await pauses.over()
    assert [line["time"][:19] for line in lines(tmp_path)] == [
        "1970-01-01T00:16:40",
        "1970-01-01T00:00:10",
    ]
    await log.close(10)
