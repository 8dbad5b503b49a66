"""kill -9 of the service while it stores: what comes back later is right, or is not there."""

import signal
import threading
from typing import Any

import grpc
import numpy as np
import pytest

from kvtier.blocks import Tier
from kvtier.v1 import cache_pb2 as pb
from kvtier.v1 import cache_pb2_grpc


def until_written(address: str) -> None:
    """Polls until no committed block waits for the SSD."""
    with grpc.insecure_channel(address) as channel:
        stub = cache_pb2_grpc.CacheServiceStub(channel)
        for _ in range(500):
            if stub.GetStats(pb.GetStatsRequest(), timeout=5).pending_write_count == 0:
                return
            threading.Event().wait(0.02)
    raise AssertionError("the SSD never caught up")


def test_written_blocks_come_back_from_ssd_after_a_kill_during_stores(
    start: Any, connect: Any, payloads: Any
) -> None:
    first = start()
    client = connect(first.ready())
    settled = [payloads.chain(n, 8) for n in range(4)]
    for chain in settled:
        assert client.store("r", chain, payloads.pages(chain)).stored_count == 8
    until_written(first.said["listen"])
    stop = threading.Event()

    def keep_storing() -> None:
        number = 100
        while not stop.is_set() and number < 160:
            chain = payloads.chain(number, 4)
            client.store("r", chain, payloads.pages(chain))
            number += 1

    storing = threading.Thread(target=keep_storing)
    storing.start()
    threading.Event().wait(0.2)
    first.signal(signal.SIGKILL)
    first.end()
    stop.set()
    storing.join(30)
    assert not storing.is_alive()

    again = connect(start().ready())
    for chain in settled:
        restored = payloads.blank(8)
        result = again.restore("r", chain, restored, 10)
        assert result.tiers == (Tier.SSD,) * 8
        expected = payloads.pages(chain)
        assert all(np.array_equal(a, b) for a, b in zip(expected, restored, strict=True))
    for number in range(100, 160):
        chain = payloads.chain(number, 4)
        restored = payloads.blank(4)
        count = len(again.restore("r", chain, restored, 10).tiers)
        expected = payloads.pages(chain)[:count]
        assert all(np.array_equal(a, b) for a, b in zip(expected, restored, strict=False))


def test_a_stop_by_sigterm_writes_what_waits_and_ends_well(
    start: Any, connect: Any, payloads: Any
) -> None:
    first = start()
    client = connect(first.ready())
    chain = payloads.chain(1, 16)
    client.store("r", chain, payloads.pages(chain))
    socket_path = first.said["arena_socket"]
    first.signal(signal.SIGTERM)
    status, rest, _ = first.end()
    assert (status, rest) == (0, "")
    with pytest.raises(FileNotFoundError):
        open(socket_path).close()
    restored = payloads.blank(16)
    result = connect(start().ready()).restore("r", chain, restored, 10)
    assert result.tiers == (Tier.SSD,) * 16


LATE = "ssd.write_when=leaving"


def test_a_stop_by_sigterm_writes_out_what_only_memory_has_and_says_so(
    start: Any, connect: Any, payloads: Any
) -> None:
    first = start(LATE)
    client = connect(first.ready())
    chain = payloads.chain(1, 16)
    client.store("r", chain, payloads.pages(chain))
    with grpc.insecure_channel(first.said["listen"]) as channel:
        stats = cache_pb2_grpc.CacheServiceStub(channel).GetStats(pb.GetStatsRequest(), timeout=5)
    assert (stats.host_only_count, stats.pending_write_count) == (16, 0)
    assert stats.admission.write_when == "leaving"
    first.signal(signal.SIGTERM)
    status, rest, errors = first.end()
    assert (status, rest) == (0, "")
    assert "written to the SSD" in errors
    restored = payloads.blank(16)
    result = connect(start(LATE).ready()).restore("r", chain, restored, 10)
    assert result.tiers == (Tier.SSD,) * 16
    expected = payloads.pages(chain)
    assert all(np.array_equal(a, b) for a, b in zip(expected, restored, strict=True))


def test_a_kill_of_a_service_that_writes_late_loses_what_only_memory_had(
    start: Any, connect: Any, payloads: Any
) -> None:
    first = start(LATE)
    client = connect(first.ready())
    chains = [payloads.chain(n, 16) for n in range(24)]
    for chain in chains:
        assert client.store("r", chain, payloads.pages(chain)).stored_count == 16
    until_written(first.said["listen"])
    first.signal(signal.SIGKILL)
    first.end()
    again = connect(start(LATE).ready())
    counts = []
    for chain in chains:
        restored = payloads.blank(16)
        counts.append(len(again.restore("r", chain, restored, 10).tiers))
        expected = payloads.pages(chain)[: counts[-1]]
        assert all(np.array_equal(a, b) for a, b in zip(expected, restored, strict=False))
    assert counts[0] == 16, "it had left memory long before"
    assert counts[-1] == 0, "it was in memory only"


def test_a_killed_services_socket_file_is_replaced(start: Any, connect: Any) -> None:
    first = start()
    first.ready()
    first.signal(signal.SIGKILL)
    first.end()
    assert start().ready()
