"""BlockPlaces: which tiers of one cache service hold which block, kept from its events.

    request = places.begin()       after the last position, or from a snapshot
    places.apply(message)  ...     in the order they come

For routers: a hint about where a prefix is warm, never a promise that it stays. Invariant: when a
snapshot was applied whole, and every message since, the answers are what the service had at
`position`; an index that is being rebuilt answers with the last whole one until then. About 150
bytes a block. Not thread-safe.
"""

from collections.abc import Iterator, Sequence

from kvtier.blocks import Tier
from kvtier.errors import KvtierError
from kvtier.v1 import events_pb2 as pb

__all__ = ["BlockPlaces", "EventGapError"]

HASH_BYTES = 32

_CAME = (pb.EVENT_KIND_STORED, pb.EVENT_KIND_PROMOTED, pb.EVENT_KIND_DEMOTED)


class EventGapError(KvtierError):
    """A message does not continue the one before it."""

    reason = "EVENT_GAP"


class BlockPlaces:
    """Tiers by block hash."""

    def __init__(self) -> None:
        self._places: dict[bytes, int] = {}
        """A bit a tier."""
        self._building: dict[bytes, int] | None = None
        """What a snapshot under way told so far."""
        self._instance_id = ""
        self._sequence = 0
        self._whole = False
        self._first = True
        """The next message is the first of its stream."""
        self._resumes = False

    # -- asking ------------------------------------------------------------------------------------

    @property
    def position(self) -> pb.EventPosition | None:
        """Up to where the answers are true; None until a snapshot was applied whole."""
        if not self._whole:
            return None
        return pb.EventPosition(instance_id=self._instance_id, sequence=self._sequence)

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._places)

    def tiers(self, block_hash: bytes) -> tuple[Tier, ...]:
        """From fast to slow; empty when the service has no copy."""
        mask = self._places.get(block_hash, 0)
        return tuple(tier for tier in Tier if mask >> tier & 1)

    def prefix(self, chain: Sequence[bytes]) -> tuple[Tier, ...]:
        """The fastest tier of each block that a lookup of the chain would find now."""
        found = []
        for block_hash in chain:
            tiers = self.tiers(block_hash)
            if not tiers:
                break
            found.append(tiers[0])
        return tuple(found)

    # -- following ---------------------------------------------------------------------------------

    def begin(self) -> pb.WatchEventsRequest:
        """What to ask for in a new stream. A snapshot that was under way begins anew."""
        self._building = None
        self._first = True
        position = self.position
        self._resumes = position is not None
        if position is None:
            return pb.WatchEventsRequest(snapshot=True)
        return pb.WatchEventsRequest(after=position)

    def lost(self) -> None:
        """The position is of no use any more; the next stream begins with a snapshot."""
        self._whole = False

    def apply(self, message: pb.WatchEventsResponse) -> None:
        """Raises EventGapError: then call `lost`, and watch anew."""
        count = sum(len(run.block_hashes) // HASH_BYTES for run in message.events)
        self._check_order(message.position, count)
        self._sequence = message.position.sequence
        if message.snapshot and self._building is None:
            self._building = {}
        places = self._places if self._building is None else self._building
        for run in message.events:
            _apply_run(places, run)
        for blocks in message.blocks:
            mask = sum(1 << tier for tier in blocks.tiers)
            places.update(dict.fromkeys(_split(blocks.block_hashes), mask))
        if message.snapshot == pb.SNAPSHOT_STATE_DONE:
            assert self._building is not None
            self._places, self._building, self._whole = self._building, None, True

    def _check_order(self, position: pb.EventPosition, count: int) -> None:
        anew = self._first and not self._resumes
        before = position.sequence - count
        if not anew and (position.instance_id, before) != (self._instance_id, self._sequence):
            raise EventGapError(
                f"events after {self._sequence} were expected, those after {before} came",
                instance_id=position.instance_id,
            )
        self._first = False
        self._instance_id = position.instance_id


def _apply_run(places: dict[bytes, int], run: pb.EventRun) -> None:
    bit = 1 << run.tier
    if run.kind in _CAME:
        for block_hash in _split(run.block_hashes):
            places[block_hash] = places.get(block_hash, 0) | bit
    elif run.kind == pb.EVENT_KIND_EVICTED:
        for block_hash in _split(run.block_hashes):
            left = places.pop(block_hash, 0) & ~bit
            if left:
                places[block_hash] = left


def _split(packed: bytes) -> Iterator[bytes]:
    return (packed[at : at + HASH_BYTES] for at in range(0, len(packed), HASH_BYTES))
