"""A worker whose disk is full or read-only: a start that says so, and every request ends once."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from worker.__main__ import main
from worker.errors import UsageJournalFailedError
from worker.usage_event import AdmittedRequest, ChargedTokens, UsageEnd, UsageEvent, end_request
from worker.usage_journal import UsageJournal, UsageOutbox
from worker.usage_journal_format import USAGE_FORMAT

Refused = Callable[[Path], str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """The line of a start that must end with status 2, at the latest at its missing model."""

    def start(directory: Path) -> str:
        values = (
            "model=/nonexistent",
            "listen=127.0.0.1:0",
            "security.development=true",
            f"data_directory={directory}",
        )
        capsys.readouterr()
        assert main([part for value in values for part in ("--set", value)]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        return said.err.strip().splitlines()[-1]

    return start


def request(name: str) -> AdmittedRequest:
    return AdmittedRequest(
        request_id=name,
        tenant_id="acme",
        model="tiny",
        node="here",
        client_request_id="n" * 128,
        start_time_ns=1,
    )


def event(name: str) -> UsageEvent:
    return end_request(request(name), UsageEnd.STOP, ChargedTokens(), now_ns=2, ttft_ns=None)


def ends_of(journal: UsageJournal) -> dict[str, UsageEnd]:
    outbox = UsageOutbox(journal.directory, 0, lambda: journal.durable_sequence)
    events = [pending.event for pending in outbox.pending(10_000)]
    ends = {e.request.request_id: e.end for e in events}
    assert len(ends) == len(events)
    return ends


@pytest.mark.parametrize("made", ["nothing", "the secret", "the journal"])
def test_a_read_only_or_full_disk_stops_the_start(
    small_disk: Any, refused: Refused, made: str
) -> None:
    directory = small_disk.path / "data"
    if made != "nothing":
        directory.mkdir()
        (directory / "scope_secret").write_bytes(os.urandom(32))
    if made == "the journal":
        UsageJournal(directory / "journal").close()
    small_disk.remount("ro")
    line = refused(directory)
    assert "Read-only file system" in line
    assert "data_directory" in line
    small_disk.remount("rw")
    if made == "nothing":
        small_disk.fill()
        line = refused(directory)
        assert "No space left on device" in line
        assert "data_directory" in line
        small_disk.empty()
    # Then it is the model that is missing.
    assert "CHECKPOINT_INVALID" in refused(directory)


async def test_a_disk_that_fills_fails_requests_and_keeps_each_end_once(small_disk: Any) -> None:
    directory = small_disk.path / "journal"
    journal = UsageJournal(directory)
    await journal.begin(request("running"))
    small_disk.fill()
    written, failed, problems = [], [], set()
    for number in range(100):  # what is left of the last page takes some
        name = f"r{number}"
        try:
            await journal.begin(request(name))
        except UsageJournalFailedError as error:
            failed.append(name)
            problems.add(str(error))
            continue
        try:
            await journal.end(event(name))
            written.append(name)
        except UsageJournalFailedError:
            failed.append(name)
    assert problems == {
        "the usage journal cannot be written (No space left on device); send again when the"
        " worker's data_directory takes writes"
    }
    assert len(USAGE_FORMAT.segment_paths(directory)) == 1
    small_disk.empty()
    await journal.end(event("running"))
    ends = ends_of(journal)
    assert {name for name, end in ends.items() if end is UsageEnd.STOP} == {"running", *written}
    assert {name for name, end in ends.items() if end is not UsageEnd.STOP} <= set(failed)
    journal.close()
    reopened = UsageJournal(directory)
    assert reopened.opening.lost_count == 0
    assert ends_of(reopened) == ends
    reopened.close()
