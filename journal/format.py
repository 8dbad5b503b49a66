"""Lines and file names of a journal, as drawn in `docs/formats/usage_journal.md`.

Invariant: what was encoded decodes to the same, and a line in which any bit is flipped does not
decode. All file names of a journal are spelled here. Pure, any thread.
"""

import binascii
import json
from dataclasses import dataclass
from json.encoder import encode_basestring as _quoted
from pathlib import Path
from typing import Any, Generic

import xxhash

from journal.dialect import Dialect, EndedT, SubjectT

__all__ = [
    "LINE_BYTES_MAX",
    "BadLineError",
    "Begin",
    "End",
    "JournalFormat",
    "Record",
    "SegmentHead",
    "StoredEnd",
    "begins_something",
    "dead_letters_path",
    "decode_acknowledged",
    "delivered_path",
    "encode_acknowledged",
    "integer_of",
    "lock_path",
    "text_of",
]

DELIVERED_FORMAT = 1
"""Of the `delivered` file."""

LINE_BYTES_MAX = 131_072
"""A usage event with a thousand leases and the most digests fits."""
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
CHECKSUM_DIGITS = 16
_SUFFIX = ".journal"


class BadLineError(ValueError):
    """The bytes are no record of this format: torn, flipped or foreign."""


@dataclass(frozen=True, slots=True)
class SegmentHead:
    """First record of every segment."""

    format: int


@dataclass(frozen=True, slots=True)
class Begin(Generic[SubjectT]):
    subject: SubjectT


@dataclass(frozen=True, slots=True)
class End(Generic[EndedT]):
    """The one end of a subject."""

    event: EndedT


Record = SegmentHead | Begin[SubjectT] | End[EndedT]


@dataclass(slots=True)
class StoredEnd(Generic[EndedT]):
    """An end as delivery reads it: what is sent, and the event itself for who asks."""

    sequence: int
    name: str
    """Of what ended."""
    wire: bytes
    """As its dialect's `wire` encodes it; empty where that has none."""
    _dialect: Dialect[Any, EndedT]
    _event: EndedT | None = None

    @property
    def event(self) -> EndedT:
        """Raises ValueError for a wire that its dialect does not know."""
        if self._event is None:
            assert self._dialect.wire is not None
            self._event = self._dialect.wire.decode(self.wire)
        return self._event


@dataclass(frozen=True, slots=True)
class JournalFormat(Generic[SubjectT, EndedT]):
    """The lines and segments of journals of one dialect."""

    dialect: Dialect[SubjectT, EndedT]

    @property
    def head(self) -> SegmentHead:
        return SegmentHead(self.dialect.format_version)

    def encode(self, sequence: int, record: Record[SubjectT, EndedT]) -> bytes:
        """One line with its newline. Raises ValueError when it would be too long."""
        wire = self.dialect.wire
        if wire is not None and isinstance(record, End):
            event = record.event
            return _checksummed(
                b'{"sequence":%d,"type":"end","name":%b,"wire":"%b"}'
                % (
                    sequence,
                    _quoted(self.dialect.ended_name(event)).encode(),
                    binascii.b2a_base64(wire.encode(event), newline=False),
                )
            )
        return _line({"sequence": sequence, **self._fields(record)})

    def decode(self, line: bytes) -> tuple[int, Record[SubjectT, EndedT]]:
        """Sequence and record of a line without its newline. Raises BadLineError."""
        fields = _checked(line)
        try:
            return integer_of(fields["sequence"]), self._record(fields)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadLineError(f"a record with keys missing or wrong: {error}") from None

    def decode_end(self, line: bytes) -> StoredEnd[EndedT] | None:
        """The end on a line, without its newline; None for another record. Raises BadLineError."""
        fields, wire = _checked(line), self.dialect.wire
        try:
            if fields["type"] != "end":
                return None
            sequence = integer_of(fields["sequence"])
            if wire is not None and "wire" in fields:
                raw = binascii.a2b_base64(fields["wire"], strict_mode=True)
                return StoredEnd(sequence, text_of(fields["name"]), raw, self.dialect)
            event = self.dialect.read_end(fields)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadLineError(f"a record with keys missing or wrong: {error}") from None
        raw = b"" if wire is None else wire.encode(event)
        return StoredEnd(sequence, self.dialect.ended_name(event), raw, self.dialect, event)

    def segment_path(self, directory: Path, first_sequence: int) -> Path:
        return directory / f"{self.dialect.file_prefix}{first_sequence:020d}{_SUFFIX}"

    def segment_paths(self, directory: Path) -> list[Path]:
        """All segments, oldest first."""
        prefix = self.dialect.file_prefix
        return sorted(
            path
            for path in directory.iterdir()
            if path.name.startswith(prefix)
            and path.name.endswith(_SUFFIX)
            and path.name[len(prefix) : -len(_SUFFIX)].isdigit()
        )

    def first_sequence_of(self, segment: Path) -> int:
        return int(segment.name[len(self.dialect.file_prefix) : -len(_SUFFIX)])

    def damaged_path(self, directory: Path, segment: Path, offset: int) -> Path:
        return directory / f"damaged-{self.first_sequence_of(segment):020d}-{offset}.bin"

    def _fields(self, record: Record[SubjectT, EndedT]) -> dict[str, Any]:
        match record:
            case SegmentHead(version):
                return {"type": "segment", "format": version}
            case Begin(subject):
                return {"type": "begin", **self.dialect.begin_fields(subject)}
            case End(event):
                return {"type": "end", **self.dialect.end_fields(event)}

    def _record(self, fields: dict[str, Any]) -> Record[SubjectT, EndedT]:
        match fields["type"]:
            case "segment":
                return SegmentHead(integer_of(fields["format"]))
            case "begin":
                return Begin(self.dialect.read_begin(fields))
            case "end" if self.dialect.wire is not None and "wire" in fields:
                raw = binascii.a2b_base64(fields["wire"], strict_mode=True)
                event = self.dialect.wire.decode(raw)
                if self.dialect.ended_name(event) != fields["name"]:
                    raise ValueError("an end of another name")
                return End(event)
            case "end":
                return End(self.dialect.read_end(fields))
            case unknown:
                raise ValueError(f"type {unknown!r}")


def begins_something(raw: bytes, start: int) -> bool:
    """Whether the line at `start` is a begin, by a look at its first keys; it may be damaged."""
    return raw.find(_BEGINS, start, start + _BEGINS_WITHIN) >= 0


_BEGINS = b',"type":"begin",'
_BEGINS_WITHIN = CHECKSUM_DIGITS + len(b' {"sequence":') + 20 + len(_BEGINS)


def encode_acknowledged(sequence: int) -> bytes:
    """The content of the `delivered` file."""
    return _line({"format": DELIVERED_FORMAT, "acknowledged": sequence})


def decode_acknowledged(raw: bytes) -> int:
    """Inverse of `encode_acknowledged`. Raises BadLineError."""
    fields = _checked(raw.removesuffix(b"\n"))
    if fields.get("format") != DELIVERED_FORMAT:
        raise BadLineError("a delivered file of another format")
    try:
        return integer_of(fields["acknowledged"])
    except (KeyError, ValueError) as error:
        raise BadLineError(str(error)) from None


def delivered_path(directory: Path) -> Path:
    return directory / "delivered"


def dead_letters_path(directory: Path) -> Path:
    return directory / "dead_letters.jsonl"


def lock_path(directory: Path) -> Path:
    return directory / "lock"


def text_of(value: object) -> str:
    """Raises ValueError for anything else."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r} where a text belongs")
    return value


def integer_of(value: object) -> int:
    """Raises ValueError for anything else."""
    if type(value) is not int:
        raise ValueError(f"{value!r} where an integer belongs")
    return value


def _line(fields: dict[str, Any]) -> bytes:
    return _checksummed(_encode(fields).encode())


def _checksummed(body: bytes) -> bytes:
    line = b"%016x %b\n" % (xxhash.xxh3_64_intdigest(body), body)
    if len(line) > LINE_BYTES_MAX:
        raise ValueError(f"a journal line of {len(line)} bytes; at most {LINE_BYTES_MAX}")
    return line


def _checked(line: bytes) -> dict[str, Any]:
    checksum, body = line[:CHECKSUM_DIGITS], line[CHECKSUM_DIGITS + 1 :]
    if line[CHECKSUM_DIGITS : CHECKSUM_DIGITS + 1] != b" ":
        raise BadLineError("no checksum")
    if checksum != b"%016x" % xxhash.xxh3_64_intdigest(body):
        raise BadLineError("the checksum does not hold")
    try:
        fields = json.loads(body)
    except ValueError:
        raise BadLineError("not JSON") from None
    if not isinstance(fields, dict):
        raise BadLineError("not a JSON object")
    return fields
