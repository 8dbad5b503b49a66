"""Tally: counts what happened since the start, and passes it on to the listener plugged in.

Invariant: a counter only grows. One writer, the core, on the event loop.
"""

from collections import Counter
from collections.abc import Mapping

from cache_service.listener import CacheListener
from cache_service.views import PassView
from kvtier.blocks import MissReason, Tier

__all__ = ["Tally"]


class Tally:
    """A listener in front of a listener; `counters` by name, names as in docs/metrics.md."""

    def __init__(self, listener: CacheListener) -> None:
        self._listener = listener
        self.counters: Counter[str] = Counter()

    def session_opened(self, session_id: str, client_name: str) -> None:
        self.counters["sessions_opened"] += 1
        self._listener.session_opened(session_id, client_name)

    def session_closed(self, session_id: str, expired: bool) -> None:
        self.counters["sessions_expired" if expired else "sessions_closed"] += 1
        self._listener.session_closed(session_id, expired)

    def prefix_matched(
        self, asked_count: int, host_count: int, ssd_count: int, reason: MissReason
    ) -> None:
        self.counters["acquires"] += 1
        self.counters["blocks_asked"] += asked_count
        self.counters["blocks_matched_host"] += host_count
        self.counters["blocks_matched_ssd"] += ssd_count
        self._listener.prefix_matched(asked_count, host_count, ssd_count, reason)

    def prefix_ready(self, ready_count: int, reason: MissReason, seconds: float) -> None:
        self.counters["blocks_ready"] += ready_count
        if reason is not MissReason.NONE:
            self.counters[f"misses_{reason.name.lower()}"] += 1
        self._listener.prefix_ready(ready_count, reason, seconds)

    def leases_expired(self, count: int) -> None:
        self.counters["leases_expired"] += count
        self._listener.leases_expired(count)

    def reservations_expired(self, count: int) -> None:
        self.counters["reservations_expired"] += count
        self._listener.reservations_expired(count)

    def blocks_committed(self, count: int, payload_bytes: int) -> None:
        self.counters["blocks_committed"] += count
        self.counters["bytes_committed"] += payload_bytes
        self._listener.blocks_committed(count, payload_bytes)

    def blocks_refused(self, count: int, reason: MissReason) -> None:
        self.counters[f"blocks_refused_{reason.name.lower()}"] += count
        self._listener.blocks_refused(count, reason)

    def blocks_evicted(self, tier: Tier, count: int) -> None:
        self.counters[f"blocks_evicted_{tier.name.lower()}"] += count
        self._listener.blocks_evicted(tier, count)

    def blocks_expired(self, count: int) -> None:
        self.counters["blocks_expired"] += count
        self._listener.blocks_expired(count)

    def blocks_purged(self, copies: Mapping[Tier, int]) -> None:
        self.counters["purges"] += 1
        for tier, count in copies.items():
            self.counters[f"blocks_purged_{tier.name.lower()}"] += count
        self._listener.blocks_purged(copies)

    def pins_changed(self, how: str, count: int) -> None:
        self.counters[f"pins_{how}"] += count
        self._listener.pins_changed(how, count)

    def blocks_promoted(self, count: int, payload_bytes: int, seconds: float) -> None:
        self.counters["blocks_promoted"] += count
        self.counters["bytes_promoted"] += payload_bytes
        self._listener.blocks_promoted(count, payload_bytes, seconds)

    def blocks_written(self, count: int, payload_bytes: int, seconds: float) -> None:
        self.counters["blocks_written"] += count
        self.counters["bytes_written"] += payload_bytes
        self._listener.blocks_written(count, payload_bytes, seconds)

    def writes_declined(self, count: int) -> None:
        self.counters["writes_declined"] += count
        self._listener.writes_declined(count)

    def room_waited(self) -> None:
        self.counters["room_waits"] += 1
        self._listener.room_waited()

    def written_out(self, written_count: int, left_count: int, left_bytes: int) -> None:
        self._listener.written_out(written_count, left_count, left_bytes)

    def block_corrupt(self, tier: Tier) -> None:
        self.counters[f"blocks_corrupt_{tier.name.lower()}"] += 1
        self._listener.block_corrupt(tier)

    def segment_recycled(self, relogged_count: int, dropped_count: int) -> None:
        self.counters["segments_recycled"] += 1
        self.counters["blocks_relogged"] += relogged_count
        self._listener.segment_recycled(relogged_count, dropped_count)

    def ssd_failed(self, operation: str, problem: str) -> None:
        self.counters["ssd_failures"] += 1
        self._listener.ssd_failed(operation, problem)

    def block_scrubbed(self, size_bytes: int) -> None:
        self.counters["blocks_scrubbed"] += 1
        self.counters["bytes_scrubbed"] += size_bytes
        self._listener.block_scrubbed(size_bytes)

    def scrub_found(self, kind: str, dropped_count: int) -> None:
        self.counters[f"scrub_found_{kind}"] += 1
        self.counters["scrub_dropped"] += dropped_count
        self._listener.scrub_found(kind, dropped_count)

    def scrub_passed(self, found: PassView) -> None:
        self.counters["scrub_passes"] += 1
        self._listener.scrub_passed(found)

    def bulk_moved(self, direction: str, payload_bytes: int) -> None:
        self.counters[f"bulk_bytes_{direction}"] += payload_bytes
        self._listener.bulk_moved(direction, payload_bytes)

    def bulk_refused(self) -> None:
        self.counters["bulk_tickets_refused"] += 1
        self._listener.bulk_refused()

    def watcher_cut(self, reason: str) -> None:
        self.counters[f"watchers_cut_{reason}"] += 1
        self._listener.watcher_cut(reason)

    def shared_asked(self, outcome: str, count: int) -> None:
        self.counters[f"shared_asked_{outcome}"] += 1
        self.counters["blocks_matched_shared"] += count
        self._listener.shared_asked(outcome, count)

    def shared_read(self, count: int, payload_bytes: int) -> None:
        self.counters["shared_blocks_read"] += count
        self.counters["shared_bytes_read"] += payload_bytes
        self._listener.shared_read(count, payload_bytes)

    def shared_written(self, count: int, size_bytes: int) -> None:
        self.counters["shared_blocks_written"] += count
        self.counters["shared_bytes_written"] += size_bytes
        self.counters["shared_extents_there_already"] += not count
        self._listener.shared_written(count, size_bytes)

    def shared_dropped(self, reason: str, count: int) -> None:
        self.counters[f"shared_blocks_dropped_{reason}"] += count
        self._listener.shared_dropped(reason, count)

    def shared_failed(self, operation: str, problem: str) -> None:
        self.counters[f"shared_failed_{operation}"] += 1
        self._listener.shared_failed(operation, problem)
