"""VerifyBlocks and `kvtier cache verify`: against a real service, with real rot."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from kvtier.errors import read_error
from kvtier.v1 import cache_pb2 as pb
from storage.ssd.format import segment_path
from storage.tier import PAGE_BYTES, SegmentId

ROOT = Path(__file__).parents[3]
SIZES = {"capacity_bytes": "64MiB", "segment_bytes": "16MiB"}


@pytest.fixture(scope="module", params=["clear", "encrypted"])
def ssd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Settings of the SSD: a verify is to find and drop alike with and without encryption."""
    if request.param == "clear":
        return {}
    key = tmp_path_factory.mktemp("keys") / "master"
    key.write_bytes(bytes(range(32)))
    key.chmod(0o600)
    return {"encryption": "aes_256_gcm", "master_key_file": str(key)}


@pytest.fixture(scope="module")
def kept(make_service: Any, ssd: dict[str, str]) -> Any:
    return make_service(ssd=SIZES | ssd)


@pytest.fixture
def stored(kept: Any, open_peer: Any, tools: Any) -> Any:
    """A service with six blocks on its SSD."""
    if not kept.stats().tiers[1].block_count:
        open_peer(kept, "stream").store(tools.fresh_chain(6))
        kept.until(lambda stats: stats.tiers[1].block_count == 6)
    return kept


def verify(service: Any, **fields: Any) -> list[pb.VerifyBlocksResponse]:
    return list(service.stub.VerifyBlocks(pb.VerifyBlocksRequest(**fields), timeout=60))


def cli(address: str, *more: str) -> subprocess.CompletedProcess[str]:
    command = "from kvtier.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", command, "cache", "verify", "--address", address, *more],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}", "PATH": "", "COLUMNS": "200"},
        check=False,
    )


def test_a_verify_tells_its_progress_and_ends_with_done(stored: Any) -> None:
    messages = verify(stored)
    assert [m.done for m in messages] == [False] * (len(messages) - 1) + [True]
    assert (messages[0].progress.checked_count, messages[0].progress.total_count) == (0, 6)
    last = messages[-1].progress
    assert (last.checked_count, last.corrupt_count, last.dropped_count) == (6, 0, 0)
    assert last.checked_bytes > 6 * (1 << 20)


def test_a_second_verify_is_refused_and_a_cancelled_one_makes_room(stored: Any) -> None:
    first = stored.stub.VerifyBlocks(pb.VerifyBlocksRequest(bytes_per_second=1), timeout=60)
    next(first)
    with pytest.raises(grpc.RpcError) as caught:
        verify(stored)
    wire = read_error(caught.value)
    assert (wire.code, wire.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "VERIFY_RUNNING")
    printed = cli(stored.address)
    assert (printed.returncode, printed.stdout) == (1, "")
    assert "VERIFY_RUNNING: another verify" in printed.stderr
    first.cancel()
    for _ in range(100):
        outcome = tried(stored)
        if isinstance(outcome, list):
            assert outcome[-1].done
            return
        assert outcome == "VERIFY_RUNNING"
    pytest.fail("a cancelled verify went on")


def tried(service: Any) -> list[pb.VerifyBlocksResponse] | str:
    """All messages, or the reason of the refusal."""
    try:
        return verify(service)
    except grpc.RpcError as error:
        return read_error(error).reason


def test_a_stop_in_the_middle_of_a_verify_is_no_crash_in_the_audit_log(
    make_service: Any, open_peer: Any, tools: Any
) -> None:
    service = make_service(drain_seconds=0.1)
    open_peer(service, "shared_memory").store(tools.fresh_chain(6))
    service.until(lambda stats: stats.tiers[1].block_count == 6)
    running = service.stub.VerifyBlocks(pb.VerifyBlocksRequest(bytes_per_second=1), timeout=60)
    next(running)
    service.end()
    with pytest.raises(grpc.RpcError):
        list(running)
    service.stop()
    path = service.settings.data_directory / "audit" / "000001.jsonl"
    outcomes = [json.loads(line)["outcome"] for line in path.read_text().splitlines()]
    assert outcomes == ["begun", "stopped"]


def test_a_negative_budget_is_malformed(stored: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        verify(stored, bytes_per_second=-1)
    assert read_error(caught.value).reason == "MALFORMED_REQUEST"


def test_a_service_without_an_ssd_says_so(make_service: Any) -> None:
    service = make_service(ssd={"enabled": False})
    with pytest.raises(grpc.RpcError) as caught:
        verify(service)
    wire = read_error(caught.value)
    assert (wire.code, wire.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NO_SSD_TIER")
    assert not service.stats().HasField("scrub")


def test_the_command_reports_rot_and_drops_it(
    make_service: Any, open_peer: Any, tools: Any, ssd: dict[str, str]
) -> None:
    service = make_service(ssd=SIZES | ssd)
    open_peer(service, "stream").store(tools.fresh_chain(4))
    service.until(lambda stats: stats.tiers[1].block_count == 4)
    healthy = cli(service.address)
    assert healthy.returncode == 0, healthy.stderr
    assert healthy.stdout.startswith("4 blocks (")
    assert "0 corrupt, 0 unreadable, 0 dropped" in healthy.stdout

    with segment_path(service.settings.data_directory / "ssd", SegmentId(0)).open("r+b") as file:
        file.seek(2 * PAGE_BYTES + 100)
        file.write(b"rotten")
    found = cli(service.address, "--json")
    assert found.returncode == 1
    data = json.loads(found.stdout)
    assert data.pop("duration_seconds") > 0
    assert data.pop("checked_bytes") == 258 * PAGE_BYTES
    # The first block is what all others continue.
    assert data == {
        "done": True,
        "checked_count": 1,
        "corrupt_count": 1,
        "unreadable_count": 0,
        "dropped_count": 4,
    }
    assert service.stats().counters["scrub_dropped"] == 4


def test_the_scrub_in_the_background_finds_rot_and_drops_it(
    make_service: Any, open_peer: Any, tools: Any, ssd: dict[str, str]
) -> None:
    service = make_service(ssd=SIZES | ssd)
    open_peer(service, "shared_memory").store(tools.fresh_chain(4))
    service.until(lambda stats: stats.tiers[1].block_count == 4)
    service.stop()
    directory = service.settings.data_directory
    with segment_path(directory / "ssd", SegmentId(0)).open("r+b") as file:
        file.seek(2 * PAGE_BYTES + 100)
        file.write(b"rotten")
    budget = {"scrub_bytes_per_second": "64MiB"}
    again = make_service(directory, ssd=SIZES | ssd | budget)
    assert again.stats().recovery.kept_count == 4, "a start reads no payload"
    stats = again.until(lambda stats: stats.scrub.pass_count == 1)
    assert stats.tiers[1].block_count == 0
    assert stats.counters["scrub_found_corrupt"] == 1
    assert stats.counters["scrub_dropped"] == 4
