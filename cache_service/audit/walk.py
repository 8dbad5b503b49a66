"""Walks the audit log's chain from its first line to its last. Reads only; blocks."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cache_service.audit.line import BrokenLineError, Head, head_before, read_line

__all__ = ["AuditBrokenError", "Walked", "audit_files", "in_order", "walk", "walk_file"]

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


def in_order(files: list[Path]) -> Iterator[Path]:
    """Each file, until one is missing. Raises AuditBrokenError."""
    for place, path in enumerate(files, start=1):
        if path.name != f"{place:06d}.jsonl":
            raise AuditBrokenError(f"{place:06d}.jsonl is missing")
        yield path


def walk_file(path: Path, head: Head | None, offset: int = 0) -> Iterator[Head]:
    """The head after each line from `offset` on. The first must follow `head`; None takes its word
    for what it follows. Raises OSError, AuditBrokenError."""
    after = f" after byte {offset}" if offset else ""
    with path.open("rb") as lines:
        lines.seek(offset)
        number = 0
        while line := lines.readline(LINE_BYTES_MAX):
            number += 1
            try:
                head = read_line(line, head_before(line) if head is None else head)
            except BrokenLineError as error:
                raise AuditBrokenError(f"{path.name}{after}, line {number} {error}") from None
            yield head


def walk(directory: Path, wanted_hash: str = "") -> Walked:
    """Walks until the end or the first break. Raises OSError."""
    head, seen, problem = Head(), not wanted_hash, ""
    files = audit_files(directory)
    try:
        for path in in_order(files):
            for after in walk_file(path, head):
                head = after
                seen = seen or head.hash == wanted_hash
    except AuditBrokenError as error:
        problem = str(error)
    return Walked(len(files), head, problem, seen)
