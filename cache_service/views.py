"""What crosses the door between the cache's core and its gRPC edge. Frozen data, any thread.

The core hands these out and never keeps them; nothing here is changed after it was made. Times are
seconds from now, never points in time: the core's clock is monotonic, the edge knows the wall's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from cache_service.quotas import NO_QUOTAS, Quotas
from kvtier.blocks import MissReason, Tier
from storage.codec_choice import CodecChoice
from storage.host.slab import SlabClass
from storage.policy.choice import DEFAULT_POLICY
from storage.tier import RecoveryReport, Slab

__all__ = [
    "AcquireEvent",
    "AdmissionView",
    "AttachedView",
    "CacheLimits",
    "CachePolicies",
    "CacheStats",
    "EncryptionStats",
    "EndView",
    "MatchView",
    "PassView",
    "PrefixView",
    "ReadyView",
    "ReservationView",
    "ScrubView",
    "SessionView",
    "SsdFilesView",
    "StarvedBlocks",
    "TierView",
    "Transport",
]


class Transport(IntEnum):
    """How payload bytes travel; the numbers are those of `kvtier/v1/cache.proto`."""

    SHARED_MEMORY = 1
    STREAM = 2
    BULK = 3


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """Every bound and deadline of the core. Counts are at least 1, times above 0."""

    session_ttl_seconds: float = 60.0
    lease_ttl_seconds: float = 30.0
    reservation_ttl_seconds: float = 30.0
    reservation_grace_seconds: float = 30.0
    """How long the slabs of an expired reservation rest before reuse: a slow shared-memory client
    may still be writing them."""
    load_timeout_seconds: float = 10.0
    """For an acquire that names none."""
    room_wait_seconds: float = 1.0
    """How long a reserve or a load waits for slabs that only the SSD writer can make free."""
    max_sessions: int = 256
    max_blocks_per_call: int = 4096
    max_leases_per_session: int = 1024
    max_reservations_per_session: int = 256
    read_ahead_blocks: int = 64
    """SSD reads that one acquire keeps in flight at most, and how many bytes they should be: as
    many blocks as fit these, but 8 of any size."""
    read_ahead_bytes: int = 16 * 1024 * 1024
    write_batch_blocks: int = 256
    write_batch_bytes: int = 64 * 1024 * 1024
    pending_write_share_max: float = 0.5
    """Share of the arena that waiting writes hold; past it new blocks wait without being held."""
    write_ahead_share: float = 0.02
    """Share of the arena that is made ready to leave ahead of need, where blocks are written when
    they leave; a write batch where that is more."""
    write_out_seconds: float = 8.0
    """How long the end of the service may write blocks that only host memory has."""
    free_segments_min: int = 2
    """Segments kept free ahead of the writer (1 where the SSD has fewer than 8)."""
    relog_share_max: float = 0.5
    """Share of a recycled segment that may be written again because it is still worth keeping."""
    ssd_retry_seconds: float = 10.0
    """How long the SSD counts as absent after repeated I/O errors."""
    purge_slice_blocks: int = 512
    """Blocks that a purge takes out before others run; fewer, where they take 5 ms."""
    forget_wait_seconds: float = 60.0
    """How long a purge waits for the SSD's index; a million blocks take it a few."""
    pin_share_max: float = 0.5
    """Share of the last tier that pins may name, and of host memory's extents that may not leave
    because of them."""
    pin_seconds_max: float = 30 * 86_400.0
    """How long a pin may last."""
    scrub_bytes_per_second: int = 0
    """What background passes over the SSD may read; 0 for none."""
    evicted_memory_count: int = 65_536
    """Hashes remembered as evicted, to tell EVICTED from NEVER_STORED."""
    events_retained: int = 262_144
    """Events kept for watchers that continue; each takes about a hundred bytes."""
    events_per_message: int = 4096
    """Events, and rows of a snapshot, that a watcher gets at once: about 300 KB of each."""
    event_batch_seconds: float = 0.05
    """Events of so long go in one message."""
    watchers_max: int = 16
    watch_stall_seconds: float = 10.0
    """How long a watcher may take nothing before it is cut off."""
    answer_memory_count: int = 65_536
    """Ended reservations remembered, so that a repeated commit gets its first answer."""


@dataclass(frozen=True, slots=True)
class CachePolicies:
    """What leaves first in each tier, and what is written to the SSD."""

    host_eviction: str = DEFAULT_POLICY
    """A name of `storage.policy.choice.POLICIES`, like the next one."""
    ssd_eviction: str = DEFAULT_POLICY
    ssd_admission: str = "all"
    """"all", or "first_new": a request's first new blocks, and those that were refused before."""
    ssd_new_blocks_max: int = 248
    """How many are the first ones."""
    ssd_write_bytes_per_day: int = 0
    """0 for no limit."""
    ssd_write_when: str = "committed"
    """"committed", or "leaving": shortly before a block leaves host memory."""
    shared_writes: bool = True
    """Whether what is stored here goes to the shared tier, where there is one."""
    quotas: Quotas = NO_QUOTAS


@dataclass(frozen=True, slots=True)
class SessionView:
    """An open session. `ticket` (32 bytes, single use) is for the arena socket."""

    session_id: str
    ticket: bytes
    session_ttl_seconds: float
    lease_ttl_seconds: float
    reservation_ttl_seconds: float
    max_blocks_per_call: int


@dataclass(frozen=True, slots=True)
class AttachedView:
    """The session whose ticket was shown."""

    session_id: str
    not_after: float
    """Unix second at which its opener's right to it ends."""


@dataclass(frozen=True, slots=True)
class PrefixView:
    """How much of a chain is present. `tiers` holds one `Tier` number per present block."""

    present_count: int
    tiers: bytes
    miss_reason: MissReason
    """NONE when all are present."""


@dataclass(frozen=True, slots=True)
class MatchView:
    """First event of an acquire. With nothing matched `lease_id` is empty."""

    lease_id: str
    expire_seconds: float
    """Until the lease ends unless renewed."""
    matched_count: int
    tiers: bytes
    """The tier each matched block is served from, one byte each."""
    miss_reason: MissReason


@dataclass(frozen=True, slots=True)
class ReadyView:
    """Blocks `first_index ..` of the chain are readable in `slabs` until the lease ends."""

    first_index: int
    slabs: tuple[Slab, ...]
    checksums: tuple[int, ...]
    """`kvtier.keys.payload_checksum` of each."""


@dataclass(frozen=True, slots=True)
class EndView:
    """Last event of an acquire."""

    ready_count: int
    miss_reason: MissReason
    """Why the readable prefix ends there; NONE when the whole chain is readable."""


AcquireEvent = MatchView | ReadyView | EndView


@dataclass(frozen=True, slots=True)
class ReservationView:
    """What a reserve answers. With nothing reserved `reservation_id` is empty."""

    reservation_id: str
    expire_seconds: float
    missing: tuple[int, ...]
    """Chain indexes of the blocks to write, ascending."""
    slabs: tuple[Slab, ...]
    """Where each missing block goes; as long as `missing`."""
    refused_count: int
    refused_reason: MissReason


@dataclass(frozen=True, slots=True)
class TierView:
    """A tier's fill and totals. `used_bytes` includes rounding and headers."""

    tier: Tier
    capacity_bytes: int
    used_bytes: int
    block_count: int
    payload_bytes: int
    evicted_count: int
    written_bytes: int
    read_bytes: int


@dataclass(frozen=True, slots=True)
class PassView:
    """A pass so far. `bytes` are those read from the disk, headers and rounding included."""

    checked_count: int = 0
    checked_bytes: int = 0
    corrupt_count: int = 0
    unreadable_count: int = 0
    dropped_count: int = 0
    """Corrupt blocks, those given up as unreadable, and all that continued them."""
    total_count: int = 0
    total_bytes: int = 0
    """What lived when the pass began; an estimate of where it ends."""
    seconds: float = 0.0
    done: bool = False


@dataclass(frozen=True, slots=True)
class ScrubView:
    """For the stats."""

    budget_bytes_per_second: int
    """0: no background passes."""
    pass_count: int
    """Whole background passes since the start."""
    running: PassView | None
    last: PassView | None
    """The last whole background pass."""


@dataclass(frozen=True, slots=True)
class StarvedBlocks:
    """Blocks that the write budget never lets in when they are new."""

    block_bytes: int
    """The smallest such size of a session since the start."""
    needs_bytes_per_day: int
    """What the budget must be for them."""


@dataclass(frozen=True, slots=True)
class SsdFilesView:
    """How the SSD tier's files are used, and what was written to them in their life."""

    io_mode: str
    io_problem: str
    """Empty with direct I/O."""
    written_since_seconds: float
    """Unix time."""
    written_before: bool
    """Something was written before that."""
    written_payload_bytes: int
    written_device_bytes: int
    """With headers, rounding and pre-writing."""


@dataclass(frozen=True, slots=True)
class EncryptionStats:
    """Whether blocks on the SSD are encrypted."""

    enabled: bool
    master: str = ""
    """The master key's fingerprint."""
    encrypted_count: int = 0
    clear_count: int = 0
    """Live blocks, by how they lie there."""
    key_count: int = 0
    destroyed_count: int = 0
    """Data keys, in the store's life."""
    clear_segment_count: int = 0
    """Segments that may hold bytes in clear, of blocks that are there or have left."""


@dataclass(frozen=True, slots=True)
class AdmissionView:
    """What the SSD's admission turned away since the start, and what that cost."""

    rule: str
    write_when: str
    declined_count: int
    """Blocks the rule refused when they were new; used again they are wanted all the same."""
    write_bytes_per_day: int
    """0 for no limit; then all that is said of a budget is 0 too."""
    allowed_bytes: int
    """What may be written at once now, of blocks that were used again."""
    allowed_new_bytes: int
    """Of blocks that were not."""
    starved: StarvedBlocks | None
    over_budget_count: int
    over_budget_bytes: int
    lost_hit_count: int
    """Misses on blocks that the rule or the budget had turned away."""


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Everything `GetStats` says. `counters` are totals since the start, by name."""

    instance_id: str
    uptime_seconds: float
    tiers: tuple[TierView, ...]
    session_count: int
    lease_count: int
    reservation_count: int
    pending_write_count: int
    """Blocks on their way from host memory to the SSD."""
    host_only_count: int
    """Blocks in host memory that the SSD lacks: what a crash now would lose."""
    quarantined_slab_count: int
    admission: AdmissionView | None
    """None without an SSD tier, like `recovery`, `scrub`, `codec`, `ssd_files`, `encryption`."""
    slab_classes: tuple[SlabClass, ...]
    """How the arena is shared out; with the free extents its capacity."""
    free_extent_count: int
    extent_bytes: int
    huge_page_bytes: int
    """How much of the arena lies in huge pages."""
    index_bytes: int
    """Memory of the index of all blocks."""
    event_count: int
    """Copies that came or left since the start."""
    watcher_count: int
    pin_count: int
    pinned_block_count: int
    """Blocks that pins name, each once, cached or not."""
    bulk_lane_count: int
    """Connections of the bulk lane."""
    bulk_transfer_count: int
    """Loads and stores on them."""
    recovery: RecoveryReport | None
    scrub: ScrubView | None = None
    codec: CodecChoice | None = None
    """What new blocks on the SSD are stored with."""
    ssd_files: SsdFilesView | None = None
    encryption: EncryptionStats | None = None
    counters: Mapping[str, int] = field(default_factory=dict)
