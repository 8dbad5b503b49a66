"""What the metrics page says of the SSD's write budget, its wear and how its files are used.

Pure: stats in, metrics out. Names: `docs/metrics.md`. Runs on the page's thread.
"""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from cache_service.views import AdmissionView, CacheStats, EncryptionStats, SsdFilesView

__all__ = ["ssd_metrics"]


def ssd_metrics(stats: CacheStats) -> Iterator[Metric]:
    """Nothing without an SSD tier."""
    if stats.admission is not None:
        yield from _budget(stats.admission)
    if stats.ssd_files is not None:
        yield from _files(stats.ssd_files)
    if stats.encryption is not None:
        yield from _encryption(stats.encryption)


def _budget(view: AdmissionView) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "kvtier_cache_write_budget_bytes_per_day",
        "The SSD's write budget; 0: none",
        value=view.write_bytes_per_day,
    )
    allowed = GaugeMetricFamily(
        "kvtier_cache_write_allowed_bytes", "What the budget lets in now", labels=["blocks"]
    )
    allowed.add_metric(["new"], view.allowed_new_bytes)
    allowed.add_metric(["used_again"], view.allowed_bytes)
    yield allowed
    for name, text, value in (
        ("over_budget_blocks", "Blocks that the budget turned away", view.over_budget_count),
        ("over_budget_bytes", "Their bytes on the SSD", view.over_budget_bytes),
        ("lost_hits", "Misses on blocks that were turned away", view.lost_hit_count),
    ):
        yield CounterMetricFamily(f"kvtier_cache_{name}", text, value=value)


def _encryption(view: EncryptionStats) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "kvtier_cache_ssd_encryption", "1: new blocks are encrypted", value=view.enabled
    )
    blocks = GaugeMetricFamily(
        "kvtier_cache_ssd_blocks", "On the SSD, by how they lie there", labels=["bytes"]
    )
    blocks.add_metric(["encrypted"], view.encrypted_count)
    blocks.add_metric(["clear"], view.clear_count)
    yield blocks
    for name, text, value in (
        ("data_keys", "Keys that organisations have", view.key_count),
        ("destroyed_data_keys", "Keys destroyed in the store's life", view.destroyed_count),
        ("ssd_clear_segments", "May hold bytes in clear", view.clear_segment_count),
    ):
        yield GaugeMetricFamily(f"kvtier_cache_{name}", text, value=value)


def _files(view: SsdFilesView) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "kvtier_cache_ssd_direct_io", "1: direct I/O; 0: refused", value=view.io_mode == "direct"
    )
    life = GaugeMetricFamily(
        "kvtier_cache_ssd_life_written_bytes", "Since the store was first counted", labels=["what"]
    )
    life.add_metric(["payload"], view.written_payload_bytes)
    life.add_metric(["device"], view.written_device_bytes)
    yield life
    yield GaugeMetricFamily(
        "kvtier_cache_ssd_life_since_seconds",
        "Unix time of that",
        value=view.written_since_seconds,
    )
