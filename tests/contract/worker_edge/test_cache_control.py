"""What one request says of the cache, through a real worker and a real cache service."""

import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from kvtier.errors import read_error
from kvtier.v1 import block_pb2, cache_pb2, cache_pb2_grpc, describe_pb2, describe_pb2_grpc
from kvtier.v1 import inference_pb2 as pb

PROMPT = "the lighthouse keeper counts the ships that pass, one line in the log for each of them"
BLOCKS = (len(PROMPT) - 1) // 16


def ask(text: str = PROMPT, **more: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(tenant_id="acme", text=text, **{"max_completion_tokens": 20} | more)


async def usage(stub: Any, request: pb.GenerateRequest) -> pb.GenerateUsage:
    found = [r.usage async for r in stub.Generate(request, timeout=60) if r.HasField("usage")]
    (only,) = found
    return only


async def resident(worker: Any, text: str = PROMPT) -> int:
    """Blocks of a prompt in the worker's pages."""
    async with grpc.aio.insecure_channel(worker.listen) as channel:
        stub: Any = describe_pb2_grpc.DescribeServiceStub(channel)
        asked = describe_pb2.DescribePromptRequest(tenant_id="acme", text=text)
        count: int = (await stub.DescribePrompt(asked)).resident_count
        return count


async def stored(cache: Any) -> dict[int, int]:
    """Blocks in each tier of the cache service."""
    async with grpc.aio.insecure_channel(cache.listen) as channel:
        stub: Any = cache_pb2_grpc.CacheServiceStub(channel)
        stats = await stub.GetStats(cache_pb2.GetStatsRequest())
        return {tier.tier: tier.block_count for tier in stats.tiers}


@pytest.fixture
def silent() -> AsyncIterator[str]:
    """Where something takes connections and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def seconds(value: float) -> Duration:
    return Duration(seconds=int(value), nanos=round(value % 1 * 1e9))


BYPASS, READ_ONLY = pb.CACHE_MODE_BYPASS, pb.CACHE_MODE_READ_ONLY

REFUSED = {
    "cache_timeout below 0": {"cache_timeout": Duration(seconds=-1)},
    "cache_timeout below 0 by nanoseconds": {"cache_timeout": Duration(nanos=-1)},
    "cache_timeout above an hour": {"cache_timeout": Duration(seconds=3601)},
    "cache_timeout without a cache": {"cache_timeout": seconds(1), "cache_mode": BYPASS},
    "cache_timeout 0 without a cache": {"cache_timeout": seconds(0), "cache_mode": BYPASS},
    "one_off without a cache": {"one_off": True, "cache_mode": BYPASS},
}


async def test_words_that_contradict_each_other_are_refused_by_name(start: Any) -> None:
    _, stub = await start()
    for name, words in REFUSED.items():
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await usage(stub, ask(**words))
        wire = read_error(caught.value)
        assert (name, wire.reason) == (name, "INVALID_CACHE_CONTROL")
        assert wire.code is grpc.StatusCode.INVALID_ARGUMENT
        assert wire.metadata["field"] == name.split()[0]


async def test_no_store_leaves_nothing_in_any_tier(start_cache: Any, start: Any) -> None:
    cache = await start_cache(ssd={"capacity_bytes": "64MiB", "segment_bytes": "4MiB"})
    worker, stub = await start(f"cache.address={cache.listen}")
    told = await usage(stub, ask(cache_mode=BYPASS, sample_count=3))
    assert told.miss_reason == block_pb2.MISS_REASON_NO_STORE
    model = await stub.GetModel(pb.GetModelRequest())
    assert model.free_page_count == model.page_count
    assert await resident(worker) == 0
    # A store that were under way would be before this one, in the worker's one lane.
    await usage(stub, ask("something else altogether"))
    await worker.drain()
    assert set((await stored(cache)).values()) <= {0, 2}
    assert (await stored(cache))[block_pb2.TIER_HOST] == 2


async def test_read_only_reads_every_tier_and_writes_none(start_cache: Any, start: Any) -> None:
    cache = await start_cache()
    first, stub = await start(f"cache.address={cache.listen}")
    await usage(stub, ask(PROMPT[:50], max_completion_tokens=1))
    await first.drain()
    before = await stored(cache)
    assert before == {block_pb2.TIER_HOST: 3}
    second, stub = await start(f"cache.address={cache.listen}")
    told = await usage(stub, ask(cache_mode=READ_ONLY))
    assert told.tokens.hit_tokens_by_tier.host == 48
    assert await resident(second) == 0
    model = await stub.GetModel(pb.GetModelRequest())
    assert model.free_page_count == model.page_count
    await second.drain()
    assert await stored(cache) == before


async def test_a_request_with_no_time_for_the_cache_does_not_ask_it(
    start_cache: Any, start: Any
) -> None:
    cache = await start_cache()
    first, stub = await start(f"cache.address={cache.listen}")
    await usage(stub, ask())
    await first.drain()
    second, stub = await start(f"cache.address={cache.listen}")
    hasty = await usage(stub, ask(cache_timeout=seconds(0), cache_mode=READ_ONLY))
    assert hasty.tokens.hit_tokens == 0
    assert hasty.miss_reason == block_pb2.MISS_REASON_DEADLINE
    patient = await usage(stub, ask(cache_timeout=seconds(2)))
    assert patient.tokens.hit_tokens_by_tier.host == BLOCKS * 16
    # What is in the worker's pages takes no time.
    again = await usage(stub, ask(cache_timeout=seconds(0)))
    assert again.tokens.hit_tokens_by_tier.gpu == BLOCKS * 16
    assert second.listen != first.listen


async def test_a_request_waits_for_the_cache_as_long_as_it_says(silent: str, start: Any) -> None:
    # By the worker's own limit this would not end within the test.
    _, stub = await start(f"cache.address={silent}", "cache.load_timeout_seconds=3000")
    told = await usage(stub, ask(cache_timeout=seconds(0.05)))
    assert told.tokens.miss_tokens == len(PROMPT)


async def test_no_request_waits_for_the_cache_longer_than_the_worker(
    silent: str, start: Any
) -> None:
    _, stub = await start(f"cache.address={silent}", "cache.load_timeout_seconds=0.05")
    told = await usage(stub, ask(cache_timeout=seconds(3000)))
    assert told.tokens.miss_tokens == len(PROMPT)


async def test_a_one_off_pushes_nobody_out_and_is_gone_first(start_cache: Any, start: Any) -> None:
    """In pages and in host memory: 24 pages of 4 KiB, 12 slabs."""
    cache = await start_cache(host={"capacity_bytes": "48KiB"})
    worker, stub = await start(f"cache.address={cache.listen}", "pool.page_bytes=96KiB")
    model = await stub.GetModel(pb.GetModelRequest())
    assert (model.page_count, model.block_bytes) == (24, 4096)
    others = [f"{number} is the number of this text: {number}" + "." * 20 for number in range(3)]
    for text in others:
        await usage(stub, ask(text, max_completion_tokens=1))
    document = "a document that is read once " * 8
    told = await usage(stub, ask(document, max_completion_tokens=1, one_off=True))
    assert told.tokens.miss_tokens == len(document)
    assert await resident(worker, document) == 14
    for text in others:
        assert await resident(worker, text) == len(text) // 16 == 3
    await usage(stub, ask("and something else that is new, now", max_completion_tokens=1))
    for text in others:
        assert await resident(worker, text) == 3
    assert await resident(worker, document) == 12
    await worker.drain()
    assert (await stored(cache))[block_pb2.TIER_HOST] == 12
    _, stub = await start(f"cache.address={cache.listen}")
    for text in others:
        again = await usage(stub, ask(text, cache_mode=READ_ONLY))
        assert again.tokens.hit_tokens_by_tier.host == 48
