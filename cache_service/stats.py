"""What the cache says about itself: one frozen snapshot, gathered from its owners. Event loop."""

from collections.abc import Mapping

from cache_service.bulk.transfers import Transfers
from cache_service.cold_side import ColdSide
from cache_service.index import BlockIndex
from cache_service.lease import LeaseTable
from cache_service.reservation import ReservationTable
from cache_service.room import HostRoom
from cache_service.session import SessionTable
from cache_service.views import CacheStats, EncryptionStats, SsdFilesView, TierView
from kvtier.blocks import Tier
from storage.host.arena import HostArena

__all__ = ["collect_stats"]


def collect_stats(
    *,
    instance_id: str,
    uptime_seconds: float,
    arena: HostArena,
    index: BlockIndex,
    sessions: SessionTable,
    leases: LeaseTable,
    reservations: ReservationTable,
    room: HostRoom,
    cold: ColdSide | None,
    ready_bytes: int,
    event_count: int,
    watcher_count: int,
    bulk: Transfers,
    pin_count: int,
    counters: Mapping[str, int],
) -> CacheStats:
    """Changes nothing."""
    host = TierView(
        tier=Tier.HOST,
        capacity_bytes=arena.capacity_bytes,
        used_bytes=arena.used_bytes,
        block_count=index.host_count,
        payload_bytes=index.host_payload_bytes,
        evicted_count=room.evicted_count,
        written_bytes=counters.get("bytes_committed", 0) + counters.get("bytes_promoted", 0),
        read_bytes=ready_bytes,
    )
    return CacheStats(
        instance_id=instance_id,
        uptime_seconds=uptime_seconds,
        tiers=(host,) if cold is None else (host, _ssd_view(index, cold)),
        session_count=len(sessions),
        lease_count=len(leases),
        reservation_count=len(reservations),
        pending_write_count=0 if cold is None else cold.writer.pending_count,
        host_only_count=index.host_only_count,
        quarantined_slab_count=reservations.quarantined_count,
        recovery=None if cold is None else cold.ssd.report,
        scrub=None if cold is None else cold.scrubbing.view(),
        codec=None if cold is None else cold.ssd.codec_choice,
        admission=None if cold is None else cold.admission.view(),
        ssd_files=None if cold is None else _files_view(cold),
        encryption=None if cold is None else _encryption(index, cold),
        slab_classes=tuple(arena.classes()),
        free_extent_count=arena.free_extent_count,
        extent_bytes=arena.extent_bytes,
        huge_page_bytes=arena.huge_bytes,
        event_count=event_count,
        watcher_count=watcher_count,
        pin_count=pin_count,
        pinned_block_count=len(index.keeping.names),
        bulk_lane_count=bulk.lane_count,
        bulk_transfer_count=bulk.transfer_count,
        index_bytes=index.memory_bytes(),
        counters=dict(counters),
    )


def _encryption(index: BlockIndex, cold: ColdSide) -> EncryptionStats:
    view = cold.ssd.encryption
    if not view.enabled:
        return EncryptionStats(enabled=False, clear_count=index.ssd_count)
    clear = cold.clear.count()
    return EncryptionStats(
        enabled=True,
        master=view.master,
        encrypted_count=index.ssd_count - clear,
        clear_count=clear,
        key_count=view.key_count,
        destroyed_count=view.destroyed_count,
        clear_segment_count=view.clear_segment_count,
    )


def _files_view(cold: ColdSide) -> SsdFilesView:
    ssd, wear = cold.ssd, cold.ssd.wear
    return SsdFilesView(
        io_mode=ssd.io_mode,
        io_problem=ssd.io_problem,
        written_since_seconds=wear.since_seconds,
        written_before=not wear.whole,
        written_payload_bytes=wear.payload_bytes,
        written_device_bytes=wear.device_bytes,
    )


def _ssd_view(index: BlockIndex, cold: ColdSide) -> TierView:
    stats = cold.ssd.stats()
    return TierView(
        tier=Tier.SSD,
        capacity_bytes=stats.capacity_bytes,
        used_bytes=stats.used_bytes,
        block_count=index.ssd_count,
        payload_bytes=index.ssd_payload_bytes,
        evicted_count=cold.recycler.evicted_count,
        written_bytes=stats.written_bytes,
        read_bytes=stats.read_bytes,
    )
