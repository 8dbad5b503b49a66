"""What crosses the door about purges: the target, and the receipt. Frozen data, any thread."""

from dataclasses import dataclass
from enum import IntEnum

from kvtier.blocks import Tier
from kvtier.keys import BlockHash, NamespaceId

__all__ = [
    "CopiesView",
    "KeyDestruction",
    "PurgeKind",
    "PurgeTarget",
    "PurgeView",
    "SharedForgetting",
    "ShredView",
    "SsdForgetting",
]


class PurgeKind(IntEnum):
    """What a purge is aimed at; the numbers are those of `kvtier/v1/control.proto`."""

    PREFIX = 1
    REQUEST = 2
    SESSION = 3
    NAMESPACE = 4
    EVERYTHING = 5
    OWNER = 20


class SsdForgetting(IntEnum):
    """Whether the SSD's index has forgotten durably; numbers as there."""

    DURABLE = 1
    PENDING = 2
    NONE = 3


class SharedForgetting(IntEnum):
    """What was deleted from the shared tier; numbers as there."""

    WHOLE = 1
    KNOWN = 2
    PENDING = 3
    NONE = 4


class KeyDestruction(IntEnum):
    """Whether data keys were destroyed durably; numbers as there."""

    DURABLE = 1
    PENDING = 2
    NONE = 3


@dataclass(frozen=True, slots=True)
class PurgeTarget:
    """Of the other fields, exactly those of the kind are given."""

    kind: PurgeKind
    namespace_id: NamespaceId | None = None
    block_hash: BlockHash | None = None
    request_id: str = ""
    session_id: str = ""
    owner: str = ""
    """The path of a scope: what it and all within it own."""

    @property
    def shreddable(self) -> bool:
        """Whether it is all that some data keys are for: a whole organisation, or everything."""
        organisation = self.kind is PurgeKind.OWNER and "/" not in self.owner
        return organisation or self.kind is PurgeKind.EVERYTHING


@dataclass(frozen=True, slots=True)
class CopiesView:
    """Copies in one tier."""

    tier: Tier
    copy_count: int
    payload_bytes: int


@dataclass(frozen=True, slots=True)
class ShredView:
    """Which data keys were destroyed, or would be."""

    key_ids: tuple[bytes, ...]
    destruction: KeyDestruction
    clear_count: int
    """Blocks of the purge that were on the SSD in clear: their bytes are not shredded."""
    clear_segment_count: int
    """Segments that may hold bytes in clear, anybody's, also of blocks that left before."""


@dataclass(frozen=True, slots=True)
class PurgeView:
    """What was taken out, or would be."""

    purge_id: str
    target: PurgeTarget
    dry_run: bool
    seconds: float
    """From its beginning to its end."""
    block_count: int
    copies: tuple[CopiesView, ...]
    hashes_sha256: bytes
    """Over the sorted hashes, one behind the other."""
    held_count: int
    """Blocks that somebody still held: their slabs are freed when the last one lets go."""
    ssd_forgetting: SsdForgetting
    pin_count: int
    """Pins that named some of the blocks, and were ended."""
    shred: ShredView | None = None
    """None unless asked for."""
    shared_forgetting: SharedForgetting = SharedForgetting.NONE
    shared_left_count: int = 0
    """Blocks whose extents could not be deleted there yet; where a whole namespace is pending, it
    is not known how many, and this is 0."""
