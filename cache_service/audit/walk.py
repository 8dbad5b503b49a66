"""Walks the audit log's chain from its first line to its last. Reads only; blocks."""

from dataclasses import dataclass
from pathlib import Path

from cache_service.audit.line import BrokenLineError, Head, read_line

__all__ = ["AuditBrokenError", "Walked", "audit_files", "walk"]

LINE_BYTES_MAX = 64 * 1024


class AuditBrokenError(Exception):
    """The chain does not hold; the message says where."""


@dataclass(frozen=True, slots=True)
class Walked:
    """What a walk found. `problem` is empty when the chain holds."""

    file_count: int
    head: Head
    problem: str
    had_head: bool
    """A line had the hash that was asked for; also true when none was."""


def audit_files(directory: Path) -> list[Path]:
    """The log's files, oldest first."""
    return sorted(directory.glob("[0-9]*.jsonl"))


def walk(directory: Path, wanted_hash: str = "") -> Walked:
    """Walks until the end or the first break. Raises OSError."""
    head, seen = Head(), not wanted_hash
    files = audit_files(directory)
    for place, path in enumerate(files, start=1):
        if path.name != f"{place:06d}.jsonl":
            return Walked(len(files), head, f"{place:06d}.jsonl is missing", seen)
        with path.open("rb") as lines:
            number = 0
            while line := lines.readline(LINE_BYTES_MAX):
                number += 1
                try:
                    head = read_line(line, head)
                except BrokenLineError as error:
                    return Walked(len(files), head, f"{path.name}, line {number} {error}", seen)
                seen = seen or head.hash == wanted_hash
    return Walked(len(files), head, "", seen)
