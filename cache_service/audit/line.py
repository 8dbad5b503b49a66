"""One line of the audit log, and the chain. Pure.

    {"number": 7, "time": "...Z", "principal": .., "roles": [..], "method": .., "target": ..,
     "outcome": "begun" | "done" | "failed" | "stopped" | "refused" | "moved", "reason": ..,
     "count": 1,
     "previous": <hash of line 6>, "hash": SHA-256 of this line without "hash"}

A line is canonical JSON (keys sorted, no blanks, ASCII) and a line feed. The first line's
`previous` is 64 zeros. Numbers have no gaps, over all files.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

__all__ = [
    "FIRST_PREVIOUS",
    "AuditEntry",
    "BrokenLineError",
    "Head",
    "head_before",
    "line_of",
    "read_line",
]

FIRST_PREVIOUS = "0" * 64


class BrokenLineError(Exception):
    """The line is not what the chain wants here; the message says in what way."""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """What happened."""

    time: str
    principal: str
    roles: tuple[str, ...]
    method: str
    target: str
    outcome: str
    reason: str = ""
    count: int = 1
    """How many refusals the line stands for."""


@dataclass(frozen=True, slots=True)
class Head:
    """Where a chain ends."""

    number: int = 0
    hash: str = FIRST_PREVIOUS


def line_of(entry: AuditEntry, head: Head) -> tuple[bytes, Head]:
    """The line that follows `head`, and the head after it."""
    fields = asdict(entry) | {"number": head.number + 1, "previous": head.hash}
    fields["roles"] = list(entry.roles)
    own = _hash(fields)
    return _canonical(fields | {"hash": own}) + b"\n", Head(head.number + 1, own)


def head_before(line: bytes) -> Head:
    """The head that `line` says it follows. Raises BrokenLineError."""
    try:
        fields = json.loads(line)
    except ValueError:
        raise BrokenLineError("is not JSON") from None
    match fields:
        case {"number": int(number), "previous": str(previous)}:
            return Head(number - 1, previous)
    raise BrokenLineError("is not written as this log writes")


def read_line(line: bytes, head: Head) -> Head:
    """The head after `line`, which must follow `head`. Raises BrokenLineError."""
    try:
        fields = json.loads(line)
    except ValueError:
        raise BrokenLineError("is not JSON") from None
    if not isinstance(fields, dict) or _canonical(fields) + b"\n" != line:
        raise BrokenLineError("is not written as this log writes")
    own = fields.pop("hash", "")
    if own != _hash(fields):
        raise BrokenLineError("was changed: its hash does not match")
    if fields.get("number") != head.number + 1:
        raise BrokenLineError(f"has number {fields.get('number')}, not {head.number + 1}")
    if fields.get("previous") != head.hash:
        raise BrokenLineError("does not follow the line before it")
    return Head(head.number + 1, str(own))


def _canonical(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("ascii")


def _hash(fields: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(fields)).hexdigest()
