"""`kvtier cache`: what programs get, and what a person gets when nothing answers."""

from io import StringIO

from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from typer.testing import CliRunner

from cache_service.commands import app, stats_data
from cache_service.stats_tables import ssd_table
from kvtier.v1 import block_pb2, cache_pb2


def test_counts_are_numbers_and_names_stay_text() -> None:
    response = cache_pb2.GetStatsResponse(
        # Hexadecimal, and by chance of digits alone.
        service_instance_id="12345678901234567890123456789012",
        tiers=[cache_pb2.TierStats(tier=block_pb2.TIER_SSD, capacity_bytes=2**40)],
        pending_write_count=2**33,
        recovery=cache_pb2.RecoveryStats(kept_count=3, duration_seconds=0.5),
        counters={"b": 2, "a": 2**40},
    )
    data = stats_data(response)
    assert data["service_instance_id"] == "12345678901234567890123456789012"
    assert data["tiers"][0]["tier"] == "ssd"
    assert data["tiers"][0]["capacity_bytes"] == 2**40
    assert data["pending_write_count"] == 2**33
    assert data["recovery"]["kept_count"] == 3
    assert data["recovery"]["duration_seconds"] == 0.5
    assert list(data["counters"].items()) == [("a", 2**40), ("b", 2)]
    assert data["session_count"] == data["lease_count"] == data["reservation_count"] == 0


def test_a_service_that_is_not_there_is_one_clear_line() -> None:
    for more in ([], ["--json"]):
        printed = CliRunner().invoke(app, ["stats", "--address", "127.0.0.1:1", *more])
        assert (printed.exit_code, printed.stdout) == (1, "")
        assert printed.stderr.count("\n") == 1
        assert "CACHE_UNREACHABLE" in printed.stderr
        assert "kvtier up" in printed.stderr


def test_the_recovery_the_scrub_and_the_codec_are_told_to_programs_and_people() -> None:
    done = cache_pb2.ScrubPass(checked_count=7, corrupt_count=1, total_count=7)
    response = cache_pb2.GetStatsResponse(
        recovery=cache_pb2.RecoveryStats(
            kept_count=3, dropped_count=2, repaired_count=1, kept_bytes=4096, problems=["a", "b"]
        ),
        scrub=cache_pb2.ScrubStats(budget_bytes_per_second=10**6, pass_count=1, last=done),
        ssd_codec=cache_pb2.SsdCodec(name="zstd", reason="disk 100 MB/s is below"),
        admission=cache_pb2.AdmissionStats(rule="all", write_when="leaving"),
        ssd_files=cache_pb2.SsdFiles(io_mode="direct", written_device_bytes=5000),
    )
    data = stats_data(response)
    assert data["recovery"]["problems"] == ["a", "b"]
    assert data["admission"]["write_when"] == "leaving"
    assert data["scrub"]["running"] is None
    assert data["scrub"]["last"]["corrupt_count"] == 1
    assert data["ssd_codec"] == {"name": "zstd", "reason": "disk 100 MB/s is below"}
    console = Console(width=200, record=True, file=StringIO())
    console.print(ssd_table(response))
    text = console.export_text()
    assert "3 blocks kept (4.1 kB), of them 1 repaired; 2 dropped" in text
    assert "problem" in text
    assert "1.0 MB/s, 1 passes; the last one found 1 corrupt and 0 unreadable of 7 blocks" in text
    assert "when a block leaves host memory; a crash loses" in text
    assert "zstd (disk 100 MB/s is below)" in text
    assert "direct I/O" in text
    assert "5.0 kB to the device" in text


def test_the_budget_and_the_files_are_told_with_what_to_do_next() -> None:
    since = Timestamp(seconds=1_700_000_000)
    response = cache_pb2.GetStatsResponse(
        admission=cache_pb2.AdmissionStats(
            rule="all",
            write_bytes_per_day=10**9,
            allowed_bytes=4_800_000,
            starved_block_bytes=10**8,
            starved_needs_bytes_per_day=5 * 10**9,
        ),
        ssd_files=cache_pb2.SsdFiles(
            io_mode="buffered",
            io_problem="Invalid argument",
            written_since=since,
            written_before=True,
            written_payload_bytes=10**12,
            written_device_bytes=2 * 10**12,
        ),
    )
    data = stats_data(response)
    assert data["ssd_files"]["written_since"] == "2023-11-14T22:13:20Z"
    assert data["ssd_files"]["written_device_bytes"] == 2 * 10**12
    assert data["admission"]["allowed_new_bytes"] == 0
    console = Console(width=400, record=True, file=StringIO())
    console.print(ssd_table(response))
    text = console.export_text()
    assert "now 0 bytes for new blocks and 4.8 MB for blocks used again" in text
    assert "NEVER lets in new blocks of 100.0 MB: raise ssd.write_bytes_per_day to 5,000,0" in text
    assert "refuses direct I/O (Invalid argument); move data_directory" in text
    assert "2.0 TB to the device, 1.0 TB of it blocks, since 2023-11-14 22:13 UTC, not" in text
