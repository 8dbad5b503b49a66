"""kill -9 around a shred: what was answered for is never read again, whatever else is lost."""

import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from kvtier.v1 import cache_pb2, cache_pb2_grpc, control_pb2_grpc
from kvtier.v1 import control_pb2 as pb
from worker.cache_port import CacheHints

ACME, BERT = (CacheHints(owners=((owner, None),)) for owner in ("acme", "bert"))
SHRED = pb.PurgeBlocksRequest(
    target=pb.PurgeTarget(kind=pb.PURGE_KIND_OWNER, of_owner="acme"), shred=True
)


@pytest.fixture
def encrypted(tmp_path: Path) -> tuple[str, ...]:
    key = tmp_path / "master"
    key.write_bytes(bytes(range(32)))
    key.chmod(0o600)
    return ("ssd.encryption=aes_256_gcm", f"ssd.master_key_file={key}")


def written(address: str) -> None:
    """Returns when nothing waits for the SSD."""
    with grpc.insecure_channel(address) as channel:
        stub, pause = cache_pb2_grpc.CacheServiceStub(channel), threading.Event()
        for _ in range(500):
            if not stub.GetStats(cache_pb2.GetStatsRequest(), timeout=5).pending_write_count:
                return
            pause.wait(0.02)
    raise AssertionError("something waits for the SSD for ever")


def stored(service: Any, connect: Any, payloads: Any, round_number: int) -> tuple[Any, Any]:
    """A chain of each of two tenants, on the SSD."""
    client = connect(service.said["listen"])
    mine, theirs = (payloads.chain(10 * round_number + i, 6) for i in (1, 2))
    for chain, hints in ((mine, ACME), (theirs, BERT)):
        assert client.store("r", chain, payloads.pages(chain), hints).stored_count == 6
    written(service.said["listen"])
    return mine, theirs


def found(client: Any, payloads: Any, chain: Any) -> int:
    """How many of it come back, and all of those right."""
    restored = payloads.blank(len(chain))
    count = len(client.restore("r", chain, restored, 10).tiers)
    assert all(map(np.array_equal, restored[:count], payloads.pages(chain)[:count]))
    return count


@pytest.mark.parametrize("lost", ["nothing", "index"])
def test_a_kill_right_after_the_answer(
    start: Any, connect: Any, payloads: Any, encrypted: Any, directory: Path, lost: str
) -> None:
    service = start(*encrypted)
    service.ready()
    mine, theirs = stored(service, connect, payloads, 0)
    with grpc.insecure_channel(service.said["listen"]) as channel:
        receipt = (
            control_pb2_grpc.ControlServiceStub(channel).PurgeBlocks(SHRED, timeout=30).receipt
        )
    service.signal(signal.SIGKILL)
    service.end()
    assert receipt.shred.destruction == pb.KEY_DESTRUCTION_DURABLE
    if lost == "index":
        shutil.rmtree(directory / "ssd" / "index")
    client = connect(start(*encrypted).ready())
    assert found(client, payloads, mine) == 0
    assert found(client, payloads, theirs) == 6


def test_kills_in_the_middle_and_the_next_shred_is_whole(
    start: Any, connect: Any, payloads: Any, encrypted: Any, directory: Path
) -> None:
    for number, seconds in enumerate((0.001, 0.004, 0.012)):
        service = start(*encrypted)
        service.ready()
        mine, theirs = stored(service, connect, payloads, number)
        channel = grpc.insecure_channel(service.said["listen"])
        call = control_pb2_grpc.ControlServiceStub(channel).PurgeBlocks.future(SHRED, timeout=30)
        threading.Event().wait(seconds)
        service.signal(signal.SIGKILL)
        service.end()
        answered = call.exception() is None
        channel.close()
        shutil.rmtree(directory / "ssd" / "index")
        service = start(*encrypted)
        client = connect(service.ready())
        assert found(client, payloads, theirs) == 6
        count = found(client, payloads, mine)
        assert not (answered and count)
        with grpc.insecure_channel(service.said["listen"]) as again:
            stub = control_pb2_grpc.ControlServiceStub(again)
            receipt = stub.PurgeBlocks(SHRED, timeout=30).receipt
        assert receipt.shred.destruction == pb.KEY_DESTRUCTION_DURABLE
        service.signal(signal.SIGKILL)
        service.end()
        shutil.rmtree(directory / "ssd" / "index")
        service = start(*encrypted)
        client = connect(service.ready())
        assert found(client, payloads, mine) == 0
        assert found(client, payloads, theirs) == 6
        service.signal(signal.SIGTERM)
        assert service.end()[0] == 0
