"""A long store goes in slices that overlap: the outcome is that of one, whatever fails between."""

import itertools
import time
from typing import Any

import numpy as np
import pytest

import worker.cache_store
from worker.cache_port import StoreResult
from worker.transfer import copy_hashed

BLOCK_BYTES = 64 * 1024


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.cache_store, "FIRST_SLICE_BYTES", BLOCK_BYTES)
    monkeypatch.setattr(worker.cache_store, "LANE_FIRST_SLICE_BYTES", BLOCK_BYTES)
    monkeypatch.setattr(worker.cache_store, "SLICE_BYTES_MAX", 3 * BLOCK_BYTES)


@pytest.fixture
def service(make_service: Any) -> Any:
    return make_service(host={"capacity_bytes": "1MiB"}, ssd={"enabled": False})


@pytest.fixture(params=["in place", "staged"])
def client(service: Any, make_client: Any, request: pytest.FixtureRequest) -> Any:
    kind = request.param
    return make_client(service.address, "shared_memory", block_bytes=BLOCK_BYTES, kind=kind)


def check_restored(client: Any, tools: Any, chain: Any, count: int) -> None:
    pages = tools.empty_pages(len(chain), BLOCK_BYTES)
    assert len(client.restore("r", chain, pages, 10).tiers) == count
    expected = tools.filled_pages(chain[:count], BLOCK_BYTES)
    assert all(np.array_equal(a, b) for a, b in zip(pages[:count], expected, strict=True))


@pytest.mark.parametrize("count", [1, 2, 4, 5, 11, 16])
def test_every_slice_is_stored(client: Any, service: Any, tools: Any, count: int) -> None:
    chain = tools.fresh_chain(count)
    stored = client.store("r", chain, tools.filled_pages(chain, BLOCK_BYTES))
    assert stored == StoreResult(count, 0, 0)
    check_restored(client, tools, chain, count)
    service.until(lambda stats: stats.lease_count == 0 and stats.reservation_count == 0)


@pytest.mark.parametrize("present", [1, 3, 4, 7, 10])
def test_what_is_there_is_copied_in_no_slice(client: Any, tools: Any, present: int) -> None:
    chain = tools.fresh_chain(10)
    pages = tools.filled_pages(chain, BLOCK_BYTES)
    client.store("r", chain[:present], pages[:present])
    assert client.store("r", chain, pages) == StoreResult(10 - present, present, 0)
    check_restored(client, tools, chain, 10)


def test_a_slice_without_room_ends_the_store_there(client: Any, service: Any, tools: Any) -> None:
    chain = tools.fresh_chain(30)
    result = client.store("r", chain, tools.filled_pages(chain, BLOCK_BYTES))
    assert result == StoreResult(16, 0, 14)
    check_restored(client, tools, chain, 16)
    service.until(lambda stats: stats.reservation_count == 0)


@pytest.mark.parametrize("at", [0, 1, 5, 9])
def test_a_copy_that_fails_leaves_whole_slices_and_nothing_reserved(
    client: Any, service: Any, tools: Any, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    chain = tools.fresh_chain(10)
    pages = tools.filled_pages(chain, BLOCK_BYTES)

    def broken(blocks: Any, *rest: Any) -> Any:
        if chain[at] in blocks:
            raise MemoryError
        return copy_hashed(blocks, *rest)

    monkeypatch.setattr(worker.cache_store, "copy_hashed", broken)
    with pytest.raises(MemoryError):
        client.store("r", chain, pages)
    service.until(lambda stats: stats.reservation_count == 0)
    monkeypatch.undo()
    whole = max(end for end in (0, 1, 4, 7) if end <= at)
    assert client.store("r", chain, pages) == StoreResult(10 - whole, whole, 0)
    check_restored(client, tools, chain, 10)


@pytest.mark.parametrize("transport", ["shared_memory", "bulk"])
@pytest.mark.parametrize("call", range(1, 60, 2))
def test_time_that_is_up_anywhere_leaves_nothing_reserved(
    service: Any, make_client: Any, tools: Any, call: int, transport: str
) -> None:
    """A clock that jumps at the nth look at it: between any two steps of a store."""
    looks = itertools.count()
    armed: list[int] = []

    def clock() -> float:
        jumped = bool(armed) and next(looks) >= call
        return time.monotonic() + (1e6 if jumped else 0.0)

    client = make_client(service.address, transport, block_bytes=BLOCK_BYTES, clock=clock)
    client.restore("r", tools.fresh_chain(1), tools.empty_pages(1, BLOCK_BYTES), 5)  # connects
    chain = tools.fresh_chain(10)
    armed.append(1)
    result = client.store("r", chain, tools.filled_pages(chain, BLOCK_BYTES))
    armed.clear()
    stats = service.until(lambda stats: stats.reservation_count == 0)
    assert result.stored_count <= stats.tiers[0].block_count
    assert result.stored_count + result.refused_count == 10
