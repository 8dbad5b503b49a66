"""What a journal directory holds, read before a worker writes to it.

Invariant: a function of the directory's bytes; running it twice changes nothing the second time.
Only the torn tail of a segment is cut, and no unreadable byte is dropped without a copy. Runs once
at start, on the main thread, under the journal's lock.
"""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from worker.errors import JournalTooNewError
from worker.usage_event import AdmittedRequest
from worker.usage_journal_format import (
    FORMAT_VERSION,
    BadLineError,
    Begin,
    Record,
    SegmentHead,
    begins_request,
    damaged_path,
    decode,
    decode_acknowledged,
    delivered_path,
    first_sequence_of,
    segment_paths,
)

__all__ = ["JournalContents", "Line", "read_acknowledged", "read_ends", "read_lines", "recover"]

log = logging.getLogger(__name__)


@dataclass(slots=True)
class JournalContents:
    """What `recover` found."""

    last_sequence: int = 0
    """The highest that was ever used, delivered and removed segments included."""
    acknowledged: int = 0
    undelivered_count: int = 0
    """Ends above `acknowledged`."""
    open_requests: dict[str, AdmittedRequest] = field(default_factory=dict)
    """Begun and not ended, by request id."""
    torn_bytes: int = 0
    """Cut off behind the last good record of a segment."""
    damaged_bytes: int = 0
    """Unreadable between good records; copied and passed over."""


@dataclass(frozen=True, slots=True)
class Line:
    """Bytes `[start, end)` of a segment, newline included, and what they say."""

    start: int
    end: int
    sequence: int
    record: Record | None
    """None: unreadable."""


def read_ends(raw: bytes) -> Iterator[Line]:
    """The lines that may be ends: begins are passed over unread."""
    start = 0
    while start < len(raw):
        if begins_request(raw, start):
            newline = raw.find(b"\n", start)
            start = len(raw) if newline < 0 else newline + 1
            continue
        line = next(read_lines(raw, start))
        yield line
        start = line.end


def read_lines(raw: bytes, start: int = 0) -> Iterator[Line]:
    """Splits a segment's bytes from offset `start`; a last line without newline is unreadable."""
    while start < len(raw):
        newline = raw.find(b"\n", start)
        end = len(raw) if newline < 0 else newline + 1
        try:
            if newline < 0:
                raise BadLineError("no newline")
            sequence, record = decode(raw[start:newline])
            yield Line(start, end, sequence, record)
        except BadLineError:
            yield Line(start, end, 0, None)
        start = end


def recover(directory: Path) -> JournalContents:
    """Reads all segments, cuts torn tails.

    Raises JournalTooNewError, OSError when the directory cannot be used.
    """
    acknowledged = read_acknowledged(directory)
    contents = JournalContents(last_sequence=acknowledged, acknowledged=acknowledged)
    for path in segment_paths(directory):
        # A segment without one good record still has its number taken.
        contents.last_sequence = max(contents.last_sequence, first_sequence_of(path))
        _read_segment(directory, path, contents)
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
            "usage events will be sent again: the delivered file is damaged",
            extra={"path": str(path), "problem": str(error)},
        )
        return 0


def _read_segment(directory: Path, path: Path, contents: JournalContents) -> None:
    raw = path.read_bytes()
    bad: list[Line] = []
    good_end = 0
    for line in read_lines(raw):
        if line.record is None:
            bad.append(line)
            continue
        _take(path, line, contents)
        good_end = line.end
    for line in bad:
        if line.start < good_end:
            contents.damaged_bytes += line.end - line.start
            _keep_copy(damaged_path(directory, path, line.start), raw[line.start : line.end])
    if good_end < len(raw):
        contents.torn_bytes += len(raw) - good_end
        _keep_copy(damaged_path(directory, path, good_end), raw[good_end:])
        _cut(path, good_end)


def _take(path: Path, line: Line, contents: JournalContents) -> None:
    contents.last_sequence = max(contents.last_sequence, line.sequence)
    record = line.record
    if isinstance(record, SegmentHead):
        if record.format > FORMAT_VERSION:
            raise JournalTooNewError(
                f"{path} has format {record.format}, this worker knows {FORMAT_VERSION}; it was"
                " written by a newer kvtier: use that one, or another data_directory"
            )
    elif isinstance(record, Begin):
        contents.open_requests[record.request.request_id] = record.request
    elif record is not None:
        contents.undelivered_count += line.sequence > contents.acknowledged
        contents.open_requests.pop(record.event.request.request_id, None)


def _keep_copy(path: Path, raw: bytes) -> None:
    with path.open("wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())


def _cut(path: Path, length: int) -> None:
    with path.open("r+b") as file:
        file.truncate(length)
        os.fsync(file.fileno())
