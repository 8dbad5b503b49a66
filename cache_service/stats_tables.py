"""`kvtier cache stats` for people: tables of what the service says. Pure."""

from rich.filesize import decimal
from rich.table import Table

from kvtier.v1 import block_pb2, cache_pb2

__all__ = ["host_table", "ssd_table", "tiers_table", "totals_table"]


def tiers_table(response: cache_pb2.GetStatsResponse) -> Table:
    table = Table(title="Tiers", title_justify="left")
    table.add_column("tier")
    for name in ("blocks", "used", "capacity", "full", "written", "read", "evicted"):
        table.add_column(name, justify="right")
    for tier in response.tiers:
        share = tier.used_bytes / tier.capacity_bytes if tier.capacity_bytes else 0.0
        table.add_row(
            block_pb2.Tier.Name(tier.tier).removeprefix("TIER_").lower(),
            f"{tier.block_count:,}",
            decimal(tier.used_bytes),
            decimal(tier.capacity_bytes),
            f"{share:.0%}",
            decimal(tier.written_bytes),
            decimal(tier.read_bytes),
            f"{tier.evicted_count:,}",
        )
    return table


def totals_table(response: cache_pb2.GetStatsResponse) -> Table:
    started = response.start_time.ToDatetime().isoformat(sep=" ", timespec="seconds")
    table = Table(title=f"Since {started} UTC", title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("how many", justify="right")
    live = {
        "sessions open": response.session_count,
        "leases live": response.lease_count,
        "reservations live": response.reservation_count,
        "blocks waiting for the SSD": response.pending_write_count,
        "blocks in host memory only": response.host_only_count,
        "bytes of the index": response.index_bytes,
    }
    totals = {name.replace("_", " "): n for name, n in sorted(response.counters.items())}
    for section in (live, totals):
        for name, count in section.items():
            table.add_row(name, f"{count:,}")
        table.add_section()
    return table


def ssd_table(response: cache_pb2.GetStatsResponse) -> Table:
    """The last recovery, the scrub and the codec."""
    table = Table(title="SSD", title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("how", overflow="fold")
    found = response.recovery
    table.add_row(
        "last recovery",
        f"{found.kept_count:,} blocks kept ({decimal(found.kept_bytes)}), of them"
        f" {found.repaired_count:,} repaired; {found.dropped_count:,} dropped;"
        f" {found.duration_seconds:,.3f} s",
    )
    for problem in found.problems:
        table.add_row("  problem", problem)
    table.add_row("scrub", _scrub_text(response.scrub))
    table.add_row("files", _files_text(response.ssd_files))
    table.add_row("written in its life", _life_text(response.ssd_files))
    table.add_row("written", _written_text(response.admission))
    table.add_row("admission", _admission_text(response.admission))
    table.add_row("encryption", _encryption_text(response.ssd_encryption))
    table.add_row("codec of new blocks", f"{response.ssd_codec.name} ({response.ssd_codec.reason})")
    return table


def host_table(response: cache_pb2.GetStatsResponse) -> Table:
    """How the arena is shared out between block sizes."""
    memory = response.host_memory
    table = Table(title="Host memory by block size", title_justify="left")
    table.add_column("slab")
    for name in ("extents", "used", "free", "bytes used"):
        table.add_column(name, justify="right")
    for each in memory.classes:
        table.add_row(
            decimal(each.slab_bytes),
            f"{each.extent_count:,}",
            f"{each.used_count:,}",
            f"{each.free_count:,}",
            decimal(each.used_count * each.slab_bytes),
        )
    table.add_row("not cut yet", f"{memory.free_extent_count:,}", "", "", "")
    table.add_row("in huge pages", "", "", "", decimal(memory.huge_page_bytes))
    return table


def _written_text(admission: cache_pb2.AdmissionStats) -> str:
    if admission.write_when == "leaving":
        return "when a block leaves host memory; a crash loses what is in host memory only"
    return "when a block is committed"


def _admission_text(admission: cache_pb2.AdmissionStats) -> str:
    text = f"rule {admission.rule}"
    if admission.rule != "all":
        text += f", {admission.declined_count:,} new blocks declined"
    if admission.write_bytes_per_day:
        text += (
            f"; budget {decimal(admission.write_bytes_per_day)} a day, now"
            f" {decimal(admission.allowed_new_bytes)} for new blocks and"
            f" {decimal(admission.allowed_bytes)} for blocks used again; over it"
            f" {admission.over_budget_count:,} blocks ({decimal(admission.over_budget_bytes)})"
        )
        if admission.starved_block_bytes:
            text += (
                f"; it NEVER lets in new blocks of {decimal(admission.starved_block_bytes)}: raise"
                f" ssd.write_bytes_per_day to {admission.starved_needs_bytes_per_day:,} or more"
            )
    else:
        text += "; no write budget"
    return f"{text}; hits lost by it: {admission.lost_hit_count:,}"


def _encryption_text(found: cache_pb2.SsdEncryption) -> str:
    if found.method == "off":
        return "off (ssd.encryption)"
    text = (
        f"{found.method}, master key {found.master_fingerprint}; {found.encrypted_count:,} blocks"
        f" encrypted under {found.data_key_count:,} data keys, {found.clear_count:,} in clear;"
        f" {found.destroyed_key_count:,} data keys destroyed"
    )
    if found.clear_segment_count:
        text += f"; {found.clear_segment_count:,} segments may still hold bytes in clear"
    return text


def _files_text(files: cache_pb2.SsdFiles) -> str:
    if files.io_mode == "buffered":
        return (
            f"through the page cache, because the file system refuses direct I/O"
            f" ({files.io_problem}); move data_directory to one that takes it (ext4, xfs)"
        )
    return "direct I/O"


def _life_text(files: cache_pb2.SsdFiles) -> str:
    since = files.written_since.ToDatetime().isoformat(sep=" ", timespec="minutes")
    return (
        f"{decimal(files.written_device_bytes)} to the device,"
        f" {decimal(files.written_payload_bytes)} of it blocks, since {since} UTC"
    ) + (", not counted before" if files.written_before else "")


def _scrub_text(scrub: cache_pb2.ScrubStats) -> str:
    if not scrub.budget_bytes_per_second:
        return "off (ssd.scrub_bytes_per_second)"
    text = f"{decimal(scrub.budget_bytes_per_second)}/s, {scrub.pass_count:,} passes"
    if scrub.HasField("running"):
        done, whole = scrub.running.checked_count, scrub.running.total_count
        text += f"; now at {done:,} of {whole:,} blocks"
    if scrub.HasField("last"):
        text += (
            f"; the last one found {scrub.last.corrupt_count:,} corrupt and"
            f" {scrub.last.unreadable_count:,} unreadable of {scrub.last.checked_count:,} blocks"
        )
    return text
