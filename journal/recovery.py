"""What a journal directory holds, read before anybody writes to it.

Invariant: a function of the directory's bytes; running it twice changes nothing the second time.
Only the torn tail of a segment is cut, and no unreadable byte is dropped without a copy. Runs once
at start, on the main thread, under the journal's lock.
"""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic

from journal.dialect import EndedT, SubjectT
from journal.errors import JournalTooNewError
from journal.format import (
    BadLineError,
    Begin,
    JournalFormat,
    Record,
    SegmentHead,
    StoredEnd,
    begins_something,
    decode_acknowledged,
    delivered_path,
)

__all__ = ["JournalContents", "Line", "read_acknowledged", "read_ends", "read_lines", "recover"]

log = logging.getLogger(__name__)


@dataclass(slots=True)
class JournalContents(Generic[SubjectT, EndedT]):
    """What `recover` found."""

    last_sequence: int = 0
    """The highest that was ever used, delivered and removed segments included."""
    acknowledged: int = 0
    undelivered_count: int = 0
    """Ends above `acknowledged`."""
    open: dict[str, SubjectT] = field(default_factory=dict)
    """Begun and not ended, by name; as the last begin has it."""
    torn_bytes: int = 0
    """Cut off behind the last good record of a segment."""
    damaged_bytes: int = 0
    """Unreadable between good records; copied and passed over."""


@dataclass(frozen=True, slots=True)
class Line(Generic[SubjectT, EndedT]):
    """Bytes `[start, end)` of a segment, newline included, and what they say."""

    start: int
    end: int
    sequence: int
    record: Record[SubjectT, EndedT] | None
    """None: unreadable."""


def read_ends(
    form: JournalFormat[SubjectT, EndedT], raw: bytes
) -> Iterator[tuple[int, StoredEnd[EndedT]]]:
    """The ends in a segment's bytes, each with where its line ends; begins are passed over unread,
    and so is what cannot be read."""
    start = 0
    while (newline := raw.find(b"\n", start)) >= 0:
        line_start, start = start, newline + 1
        if begins_something(raw, line_start):
            continue
        try:
            end = form.decode_end(raw[line_start:newline])
        except BadLineError:
            continue
        if end is not None:
            yield start, end


def read_lines(
    form: JournalFormat[SubjectT, EndedT], raw: bytes
) -> Iterator[Line[SubjectT, EndedT]]:
    """Splits a segment's bytes; a last line without newline is unreadable."""
    start = 0
    while start < len(raw):
        newline = raw.find(b"\n", start)
        end = len(raw) if newline < 0 else newline + 1
        try:
            if newline < 0:
                raise BadLineError("no newline")
            sequence, record = form.decode(raw[start:newline])
            yield Line(start, end, sequence, record)
        except BadLineError:
            yield Line(start, end, 0, None)
        start = end


def recover(
    form: JournalFormat[SubjectT, EndedT], directory: Path
) -> JournalContents[SubjectT, EndedT]:
    """Reads all segments, cuts torn tails.

    Raises JournalTooNewError, OSError when the directory cannot be used.
    """
    acknowledged = read_acknowledged(directory)
    contents: JournalContents[SubjectT, EndedT] = JournalContents(acknowledged, acknowledged)
    for path in form.segment_paths(directory):
        # A segment without one good record still has its number taken.
        contents.last_sequence = max(contents.last_sequence, form.first_sequence_of(path))
        _read_segment(form, directory, path, contents)
    return contents


def read_acknowledged(directory: Path) -> int:
    """Up to which sequence number billing has everything; 0 when that is not known."""
    path = delivered_path(directory)
    try:
        return decode_acknowledged(path.read_bytes())
    except FileNotFoundError:
        return 0
    except BadLineError as error:
        log.warning(
            "what was delivered will be sent again: the delivered file is damaged",
            extra={"path": str(path), "problem": str(error)},
        )
        return 0


def _read_segment(
    form: JournalFormat[SubjectT, EndedT],
    directory: Path,
    path: Path,
    contents: JournalContents[SubjectT, EndedT],
) -> None:
    raw = path.read_bytes()
    bad: list[Line[SubjectT, EndedT]] = []
    good_end = 0
    for line in read_lines(form, raw):
        if line.record is None:
            bad.append(line)
            continue
        _take(form, path, line, contents)
        good_end = line.end
    for line in bad:
        if line.start < good_end:
            contents.damaged_bytes += line.end - line.start
            _keep_copy(form.damaged_path(directory, path, line.start), raw[line.start : line.end])
    if good_end < len(raw):
        contents.torn_bytes += len(raw) - good_end
        _keep_copy(form.damaged_path(directory, path, good_end), raw[good_end:])
        _cut(path, good_end)


def _take(
    form: JournalFormat[SubjectT, EndedT],
    path: Path,
    line: Line[SubjectT, EndedT],
    contents: JournalContents[SubjectT, EndedT],
) -> None:
    contents.last_sequence = max(contents.last_sequence, line.sequence)
    record, dialect = line.record, form.dialect
    if isinstance(record, SegmentHead):
        if record.format > dialect.format_version:
            raise JournalTooNewError(
                f"{path} has format {record.format}, this {dialect.holder} knows"
                f" {dialect.format_version}; it was written by a newer kvtier: use that one, or"
                " another data_directory"
            )
    elif isinstance(record, Begin):
        contents.open[dialect.name(record.subject)] = record.subject
    elif record is not None:
        contents.undelivered_count += line.sequence > contents.acknowledged
        contents.open.pop(dialect.ended_name(record.event), None)


def _keep_copy(path: Path, raw: bytes) -> None:
    with path.open("wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())


def _cut(path: Path, length: int) -> None:
    with path.open("r+b") as file:
        file.truncate(length)
        os.fsync(file.fileno())
