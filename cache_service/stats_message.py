"""The wire form of what the cache says about itself. Pure; any thread."""

from cache_service import wire
from cache_service.views import (
    AdmissionView,
    CacheStats,
    EncryptionStats,
    PassView,
    ScrubView,
    SsdFilesView,
    TierView,
)
from kvtier.v1 import cache_pb2 as pb
from storage.codec_choice import CodecChoice
from storage.tier import RecoveryReport

__all__ = ["pass_message", "stats_message"]


def stats_message(stats: CacheStats, start_seconds: float) -> pb.GetStatsResponse:
    """`start_seconds` is Unix time."""
    return pb.GetStatsResponse(
        service_instance_id=stats.instance_id,
        start_time=wire.timestamp(start_seconds),
        tiers=[_tier(tier) for tier in stats.tiers],
        session_count=stats.session_count,
        lease_count=stats.lease_count,
        reservation_count=stats.reservation_count,
        pending_write_count=stats.pending_write_count,
        host_only_count=stats.host_only_count,
        recovery=_recovery(stats.recovery) if stats.recovery is not None else None,
        counters=stats.counters,
        scrub=_scrub(stats.scrub) if stats.scrub is not None else None,
        ssd_codec=_codec(stats.codec) if stats.codec is not None else None,
        admission=_admission(stats.admission) if stats.admission is not None else None,
        host_memory=_host_memory(stats),
        index_bytes=stats.index_bytes,
        ssd_encryption=_encryption(stats.encryption) if stats.encryption is not None else None,
        ssd_files=_files(stats.ssd_files) if stats.ssd_files is not None else None,
    )


def pass_message(view: PassView) -> pb.ScrubPass:
    return pb.ScrubPass(
        checked_count=view.checked_count,
        checked_bytes=view.checked_bytes,
        corrupt_count=view.corrupt_count,
        unreadable_count=view.unreadable_count,
        dropped_count=view.dropped_count,
        total_count=view.total_count,
        total_bytes=view.total_bytes,
        duration_seconds=view.seconds,
    )


def _tier(view: TierView) -> pb.TierStats:
    return pb.TierStats(
        tier=wire.tier(view.tier),
        capacity_bytes=view.capacity_bytes,
        used_bytes=view.used_bytes,
        block_count=view.block_count,
        payload_bytes=view.payload_bytes,
        evicted_count=view.evicted_count,
        written_bytes=view.written_bytes,
        read_bytes=view.read_bytes,
    )


def _recovery(report: RecoveryReport) -> pb.RecoveryStats:
    return pb.RecoveryStats(
        kept_count=report.kept_count,
        dropped_count=report.dropped_count,
        repaired_count=report.repaired_count,
        kept_bytes=report.kept_bytes,
        duration_seconds=report.duration_seconds,
        problems=report.problems,
    )


def _scrub(view: ScrubView) -> pb.ScrubStats:
    return pb.ScrubStats(
        budget_bytes_per_second=view.budget_bytes_per_second,
        pass_count=view.pass_count,
        running=pass_message(view.running) if view.running is not None else None,
        last=pass_message(view.last) if view.last is not None else None,
    )


def _admission(view: AdmissionView) -> pb.AdmissionStats:
    return pb.AdmissionStats(
        rule=view.rule,
        declined_count=view.declined_count,
        write_bytes_per_day=view.write_bytes_per_day,
        allowed_bytes=view.allowed_bytes,
        over_budget_count=view.over_budget_count,
        over_budget_bytes=view.over_budget_bytes,
        lost_hit_count=view.lost_hit_count,
        write_when=view.write_when,
        allowed_new_bytes=view.allowed_new_bytes,
        starved_block_bytes=view.starved.block_bytes if view.starved is not None else 0,
        starved_needs_bytes_per_day=(
            view.starved.needs_bytes_per_day if view.starved is not None else 0
        ),
    )


def _files(view: SsdFilesView) -> pb.SsdFiles:
    return pb.SsdFiles(
        io_mode=view.io_mode,
        io_problem=view.io_problem,
        written_since=wire.timestamp(view.written_since_seconds),
        written_before=view.written_before,
        written_payload_bytes=view.written_payload_bytes,
        written_device_bytes=view.written_device_bytes,
    )


def _encryption(view: EncryptionStats) -> pb.SsdEncryption:
    return pb.SsdEncryption(
        method="aes_256_gcm" if view.enabled else "off",
        master_fingerprint=view.master,
        encrypted_count=view.encrypted_count,
        clear_count=view.clear_count,
        data_key_count=view.key_count,
        destroyed_key_count=view.destroyed_count,
        clear_segment_count=view.clear_segment_count,
    )


def _host_memory(stats: CacheStats) -> pb.HostMemoryStats:
    return pb.HostMemoryStats(
        extent_bytes=stats.extent_bytes,
        huge_page_bytes=stats.huge_page_bytes,
        free_extent_count=stats.free_extent_count,
        classes=[
            pb.SlabClass(
                slab_bytes=each.slab_bytes,
                extent_count=each.extent_count,
                used_count=each.used_count,
                free_count=each.free_count,
            )
            for each in stats.slab_classes
        ],
    )


def _codec(choice: CodecChoice) -> pb.SsdCodec:
    return pb.SsdCodec(name=choice.codec.label, reason=choice.reason)
