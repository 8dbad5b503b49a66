"""What the core tells the outside about itself: one protocol, plugged in by the composition root.

The core neither logs nor counts for dashboards; it calls a listener. Invariant: a listener changes
nothing of the core's and never raises. Called on the event loop, so it returns at once.
"""

from collections.abc import Mapping
from typing import Protocol

from cache_service.views import PassView
from kvtier.blocks import MissReason, Tier

__all__ = ["CacheListener", "QuietListener"]


class CacheListener(Protocol):
    """Hears what the core did, for metrics and logs. Called on the loop; returns at once."""

    def session_opened(self, session_id: str, client_name: str) -> None: ...

    def session_closed(self, session_id: str, expired: bool) -> None: ...

    def prefix_matched(
        self, asked_count: int, host_count: int, ssd_count: int, reason: MissReason
    ) -> None: ...

    def prefix_ready(self, ready_count: int, reason: MissReason, seconds: float) -> None:
        """An acquire reached its end; `seconds` since its match."""
        ...

    def leases_expired(self, count: int) -> None: ...

    def reservations_expired(self, count: int) -> None: ...

    def blocks_committed(self, count: int, payload_bytes: int) -> None: ...

    def blocks_refused(self, count: int, reason: MissReason) -> None: ...

    def blocks_evicted(self, tier: Tier, count: int) -> None:
        """`count` copies left `tier`, for room or because an ancestor left."""
        ...

    def blocks_expired(self, count: int) -> None:
        """Blocks left every tier because their time was over."""
        ...

    def blocks_purged(self, copies: Mapping[Tier, int]) -> None:
        """A purge ended: copies that it took out, by tier."""
        ...

    def pins_changed(self, how: str, count: int) -> None:
        """Pins were "made", "removed", "expired", or ended because they were "purged"."""
        ...

    def blocks_promoted(self, count: int, payload_bytes: int, seconds: float) -> None: ...

    def blocks_written(self, count: int, payload_bytes: int, seconds: float) -> None:
        """Written behind to the SSD and durable there."""
        ...

    def writes_declined(self, count: int) -> None:
        """Blocks kept off the SSD: by admission, or because they had to leave before their turn."""
        ...

    def room_waited(self) -> None:
        """A store or a load waited for the SSD writer before it got a slab, or got none."""
        ...

    def written_out(self, written_count: int, left_count: int, left_bytes: int) -> None:
        """The end of the service wrote blocks that only host memory had; the others are lost."""
        ...

    def block_corrupt(self, tier: Tier) -> None: ...

    def segment_recycled(self, relogged_count: int, dropped_count: int) -> None: ...

    def ssd_failed(self, operation: str, problem: str) -> None: ...

    def block_scrubbed(self, size_bytes: int) -> None: ...

    def scrub_found(self, kind: str, dropped_count: int) -> None:
        """`kind` is "corrupt" or "unreadable"."""
        ...

    def scrub_passed(self, found: PassView) -> None:
        """A whole background pass ended."""
        ...

    def bulk_moved(self, direction: str, payload_bytes: int) -> None:
        """A transfer of the bulk lane ended; `direction` is "sent" or "received"."""
        ...

    def bulk_refused(self) -> None:
        """The bulk lane refused a ticket."""
        ...

    def shared_asked(self, outcome: str, count: int) -> None:
        """An acquire asked the shared tier, or would have; `count` blocks are to be loaded."""
        ...

    def shared_read(self, count: int, payload_bytes: int) -> None:
        """Blocks came from the shared tier, checked."""
        ...

    def shared_written(self, count: int, size_bytes: int) -> None:
        """An extent of so many blocks was written; 0, 0: it was there already."""
        ...

    def shared_dropped(self, reason: str, count: int) -> None:
        """Blocks that do not go to the shared tier: "queue_full", "unavailable", "left", "failed"
        or "shutdown"."""
        ...

    def shared_failed(self, operation: str, problem: str) -> None:
        """The shared tier failed or did not answer in time."""
        ...

    def watcher_cut(self, reason: str) -> None:
        """A watcher of the events was cut off: "stalled" or "events_lost"."""
        ...


class QuietListener:
    """Hears everything and does nothing; a base for listeners that care about a few events."""

    def session_opened(self, session_id: str, client_name: str) -> None:
        return

    def session_closed(self, session_id: str, expired: bool) -> None:
        return

    def prefix_matched(
        self, asked_count: int, host_count: int, ssd_count: int, reason: MissReason
    ) -> None:
        return

    def prefix_ready(self, ready_count: int, reason: MissReason, seconds: float) -> None:
        return

    def leases_expired(self, count: int) -> None:
        return

    def reservations_expired(self, count: int) -> None:
        return

    def blocks_committed(self, count: int, payload_bytes: int) -> None:
        return

    def blocks_refused(self, count: int, reason: MissReason) -> None:
        return

    def blocks_evicted(self, tier: Tier, count: int) -> None:
        return

    def blocks_expired(self, count: int) -> None:
        return

    def blocks_purged(self, copies: Mapping[Tier, int]) -> None:
        return

    def pins_changed(self, how: str, count: int) -> None:
        return

    def blocks_promoted(self, count: int, payload_bytes: int, seconds: float) -> None:
        return

    def blocks_written(self, count: int, payload_bytes: int, seconds: float) -> None:
        return

    def writes_declined(self, count: int) -> None:
        return

    def room_waited(self) -> None:
        return

    def written_out(self, written_count: int, left_count: int, left_bytes: int) -> None:
        return

    def block_corrupt(self, tier: Tier) -> None:
        return

    def segment_recycled(self, relogged_count: int, dropped_count: int) -> None:
        return

    def ssd_failed(self, operation: str, problem: str) -> None:
        return

    def block_scrubbed(self, size_bytes: int) -> None:
        return

    def scrub_found(self, kind: str, dropped_count: int) -> None:
        return

    def scrub_passed(self, found: PassView) -> None:
        return

    def bulk_moved(self, direction: str, payload_bytes: int) -> None:
        return

    def bulk_refused(self) -> None:
        return

    def shared_asked(self, outcome: str, count: int) -> None:
        return

    def shared_read(self, count: int, payload_bytes: int) -> None:
        return

    def shared_written(self, count: int, size_bytes: int) -> None:
        return

    def shared_dropped(self, reason: str, count: int) -> None:
        return

    def shared_failed(self, operation: str, problem: str) -> None:
        return

    def watcher_cut(self, reason: str) -> None:
        return
