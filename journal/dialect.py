"""What a journal is of: its records' own keys, and what becomes of those that were cut short.

Frozen data and pure functions, any thread.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from kvtier.errors import KvtierError

__all__ = ["Dialect", "EndedT", "SubjectT", "Wire"]

SubjectT = TypeVar("SubjectT")
"""What began."""

EndedT = TypeVar("EndedT")
"""How it ended: what is delivered."""


@dataclass(frozen=True, slots=True)
class Wire(Generic[EndedT]):
    """Ends as the bytes that are delivered: made once, kept in the journal, sent as they lie."""

    encode: Callable[[EndedT], bytes]
    decode: Callable[[bytes], EndedT]
    """Raises ValueError for what `encode` does not make."""


@dataclass(frozen=True, slots=True)
class Dialect(Generic[SubjectT, EndedT]):
    """Spells subjects and ends. Reading functions raise KeyError, TypeError, ValueError or
    AttributeError for keys that are missing or wrong."""

    noun: str
    """For people: "usage journal"."""
    holder: str
    """Who has one: "worker"."""
    file_prefix: str
    """Segments are named so: "usage-"."""
    format_version: int
    """Stored in every segment."""
    begin_fields: Callable[[SubjectT], dict[str, Any]]
    read_begin: Callable[[dict[str, Any]], SubjectT]
    end_fields: Callable[[EndedT], dict[str, Any]]
    """Of a dead letter, and of an end's record where there is no `wire`."""
    read_end: Callable[[dict[str, Any]], EndedT]
    name: Callable[[SubjectT], str]
    """Tells subjects apart."""
    subject: Callable[[EndedT], SubjectT]
    """Of an end."""
    lost: Callable[[SubjectT, int], EndedT]
    """The end of what a process that died left open; the wall clock in nanoseconds."""
    unwritten: Callable[[EndedT, int], EndedT]
    """What is written in place of an end that failed, when the journal can be written again."""
    failure: Callable[[str], KvtierError]
    """What callers get whose record is not written; in words what happened."""
    syncs_begins: bool = False
    """Whether a begin is durable too when its call returns."""
    wire: Wire[EndedT] | None = None
    """None: ends are kept as their fields, and encoded when they are delivered."""

    def ended_name(self, event: EndedT) -> str:
        """Of what ended."""
        return self.name(self.subject(event))
