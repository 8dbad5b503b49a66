"""Ends in the journal that billing does not have yet, and how far it has acknowledged.

Invariant: `delivered` moves only over ends that billing accepted or knew, or that are synced in
the dead letters; a segment is removed only when all its ends lie behind it, oldest first. Blocking
code; one thread (the delivery's) uses an outbox and is the only writer of `delivered`, the dead
letters and removals.
"""

import itertools
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple

from journal.dialect import EndedT, SubjectT
from journal.format import (
    JournalFormat,
    StoredEnd,
    dead_letters_path,
    delivered_path,
    encode_acknowledged,
)
from journal.recovery import read_ends
from journal.segment import sync_directory

__all__ = ["DeadLetter", "Outbox"]


@dataclass(frozen=True, slots=True)
class DeadLetter(Generic[EndedT]):
    """An end that billing refused for good."""

    end: StoredEnd[EndedT]
    status: str
    reason: str


class _Position(NamedTuple):
    """Behind the line with `sequence`: where reading goes on once that is acknowledged."""

    sequence: int
    segment: Path
    offset: int


class Outbox(Generic[SubjectT, EndedT]):
    """Reads ends in order, forgets them when told so."""

    def __init__(
        self,
        form: JournalFormat[SubjectT, EndedT],
        directory: Path,
        acknowledged: int,
        durable_sequence: Callable[[], int],
    ) -> None:
        """`durable_sequence()`: up to where the journal's records may be read, see there."""
        self._form = form
        self._directory = directory
        self._durable_sequence = durable_sequence
        self._acknowledged = acknowledged
        self._position: _Position | None = None
        self._handed_out: list[_Position] = []

    @property
    def acknowledged(self) -> int:
        """Billing has every end up to this sequence number."""
        return self._acknowledged

    def pending(self, limit: int, behind: int = 0) -> list[StoredEnd[EndedT]]:
        """The first unacknowledged durable ends, at most `limit`, in order. Raises OSError.

        `behind`: those that follow the event of this sequence number, which was handed out since
        the last call from the start and is not acknowledged. 0: from the start again.
        """
        durable = self._durable_sequence()
        found: list[StoredEnd[EndedT]] = []
        # What is behind `behind` is handed out again.
        self._handed_out = [p for p in self._handed_out if p.sequence <= behind]
        start = self._handed_out[-1] if behind else self._position
        assert start is None or not behind or start.sequence == behind
        passed = max(self._acknowledged, behind)
        for segment, offset in self._unread(start):
            raw = _read_from(segment, offset)
            for line_end, end in read_ends(self._form, raw):
                if end.sequence > durable:
                    return found
                if end.sequence > passed:
                    found.append(end)
                    here = _Position(end.sequence, segment, offset + line_end)
                    self._handed_out.append(here)
                    if len(found) == limit:
                        return found
        return found

    def acknowledge(self, sequence: int, refused: Sequence[DeadLetter[EndedT]] = ()) -> None:
        """Billing has, or refused for good, every event up to `sequence`. Raises OSError.

        After an error nothing was forgotten; call it again.
        """
        if refused:
            self._bury(refused)
        _replace(delivered_path(self._directory), encode_acknowledged(sequence))
        self._acknowledged = sequence
        passed = [p for p in self._handed_out if p.sequence <= sequence]
        if passed:
            self._position = passed[-1]
            self._handed_out = self._handed_out[len(passed) :]
        self._remove_delivered()

    def _unread(self, start: _Position | None) -> list[tuple[Path, int]]:
        segments = self._form.segment_paths(self._directory)
        if start is None:
            return [(segment, 0) for segment in segments]
        at, offset = start.segment, start.offset
        return [(s, offset if s == at else 0) for s in segments if s >= at]

    def _bury(self, refused: Sequence[DeadLetter[EndedT]]) -> None:
        raw = b"".join(self._dead_letter_line(letter) for letter in refused)
        with dead_letters_path(self._directory).open("ab") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())

    def _remove_delivered(self) -> None:
        """The next segment's head must be durable first: it repeats the begins of this one."""
        segments = self._form.segment_paths(self._directory)
        for segment, following in itertools.pairwise(segments):
            first_kept = self._form.first_sequence_of(following)
            if first_kept - 1 > self._acknowledged or first_kept > self._durable_sequence():
                return
            segment.unlink()

    def _dead_letter_line(self, letter: DeadLetter[EndedT]) -> bytes:
        end = self._form.dialect.end_fields(letter.end.event)
        fields = {"status": letter.status, "reason": letter.reason, **end}
        return json.dumps(fields, ensure_ascii=False).encode() + b"\n"


def _read_from(segment: Path, offset: int) -> bytes:
    with segment.open("rb") as file:
        file.seek(offset)
        return file.read()


def _replace(path: Path, raw: bytes) -> None:
    temporary = path.with_suffix(".new")
    with temporary.open("wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    sync_directory(path.parent)
