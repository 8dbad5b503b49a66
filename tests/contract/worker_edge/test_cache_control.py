"""What one request says of the cache, through a real worker and a real cache service."""

import asyncio
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
DRAWN = pb.SamplingParameters(temperature=1.0)


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
    "ttl_class without a cache": {"ttl_class": "5m", "cache_mode": BYPASS},
    "ttl_class read-only": {"ttl_class": "5m", "cache_mode": READ_ONLY},
    "ttl_class of a one-off": {"ttl_class": "5m", "one_off": True},
    "ttl_class unknown": {"ttl_class": "5 minutes"},
}


async def test_words_that_contradict_each_other_are_refused_by_name(start: Any) -> None:
    _, stub = await start("cache.ttl_classes=5m=300,1h=3600")
    for name, words in REFUSED.items():
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await usage(stub, ask(**words))
        wire = read_error(caught.value)
        assert (name, wire.reason) == (name, "INVALID_CACHE_CONTROL")
        assert wire.code is grpc.StatusCode.INVALID_ARGUMENT
        assert wire.metadata["field"] == name.split()[0]


async def test_a_reply_says_what_was_written_to_the_cache_under_which_class(start: Any) -> None:
    _, stub = await start("cache.ttl_classes=5m=300,1h=3600", "cache.address=")

    async def written(tenant: str = "acme", **words: Any) -> tuple[int, str]:
        request = ask(PROMPT[:50], max_completion_tokens=1, **words)
        request.tenant_id = tenant
        tokens = (await usage(stub, request)).tokens
        assert tokens.cache_write_tokens <= tokens.miss_tokens + tokens.completion_tokens
        return tokens.cache_write_tokens, tokens.cache_write_ttl_class

    assert await written(cache_mode=BYPASS) == (0, "")
    assert await written(ttl_class="5m") == (48, "5m")
    assert await written(ttl_class="1h") == (0, ""), "renewed, not written"
    assert await written("umbra") == (48, "")


async def test_no_store_leaves_nothing_in_any_tier(start_cache: Any, start: Any) -> None:
    cache = await start_cache(ssd={"capacity_bytes": "64MiB", "segment_bytes": "4MiB"})
    worker, stub = await start(f"cache.address={cache.listen}")
    told = await usage(stub, ask(cache_mode=BYPASS, sample_count=3, sampling=DRAWN))
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


OTHERS = [f"{number} is the number of this text: {number}" + "." * 20 for number in range(3)]
DOCUMENT = "a document that is read once " * 8


async def test_pages_of_a_one_off_go_before_others(start: Any) -> None:
    """24 pages of 4 KiB."""
    worker, stub = await start("pool.page_bytes=96KiB")
    model = await stub.GetModel(pb.GetModelRequest())
    assert (model.page_count, model.block_bytes) == (24, 4096)
    for text in OTHERS:
        await usage(stub, ask(text, max_completion_tokens=1))
    told = await usage(stub, ask(DOCUMENT, max_completion_tokens=1, one_off=True))
    assert told.tokens.miss_tokens == len(DOCUMENT)
    assert await resident(worker, DOCUMENT) == 14
    assert [await resident(worker, text) for text in OTHERS] == [3, 3, 3]
    await usage(stub, ask("and something else that is new, now", max_completion_tokens=1))
    assert [await resident(worker, text) for text in OTHERS] == [3, 3, 3]
    assert await resident(worker, DOCUMENT) == 12


async def test_a_one_off_pushes_nobody_out_of_host_memory(start_cache: Any, start: Any) -> None:
    """12 slabs, nine of them others'."""
    cache = await start_cache(host={"capacity_bytes": "48KiB"})
    worker, stub = await start(f"cache.address={cache.listen}")
    for text in OTHERS:
        await usage(stub, ask(text, max_completion_tokens=1))
    await usage(stub, ask(DOCUMENT, max_completion_tokens=1, one_off=True))
    # Two blocks of it make room for these.
    await usage(stub, ask("and something else that is new, now", max_completion_tokens=1))
    await worker.drain()
    assert (await stored(cache))[block_pb2.TIER_HOST] == 12
    _, stub = await start(f"cache.address={cache.listen}")
    for text in OTHERS:
        again = await usage(stub, ask(text, cache_mode=READ_ONLY))
        assert again.tokens.hit_tokens_by_tier.host == 48
    left = await usage(stub, ask(DOCUMENT, cache_mode=READ_ONLY, max_completion_tokens=1))
    assert left.tokens.hit_tokens_by_tier.host == 16


async def test_a_ttl_class_is_for_how_long_blocks_may_be_used_in_every_tier(
    start_cache: Any, start: Any
) -> None:
    cache = await start_cache(ssd={"capacity_bytes": "64MiB", "segment_bytes": "4MiB"})
    classes = "cache.ttl_classes=short=2,1h=3600"
    worker, stub = await start(f"cache.address={cache.listen}", classes)
    model = await stub.GetModel(pb.GetModelRequest())
    assert {name: ttl.seconds for name, ttl in model.ttl_classes.items()} == {
        "short": 2,
        "1h": 3600,
    }
    brief, long = PROMPT, PROMPT.upper()
    await usage(stub, ask(brief, ttl_class="short", max_completion_tokens=1))
    await usage(stub, ask(long, ttl_class="1h", max_completion_tokens=1))
    while await resident(worker, brief):
        await asyncio.sleep(0.05)
    assert await resident(worker, long) == BLOCKS
    over = await usage(stub, ask(brief, cache_mode=READ_ONLY))
    assert over.tokens.hit_tokens == 0
    assert over.miss_reason == block_pb2.MISS_REASON_EXPIRED
    await worker.drain()
    second, stub = await start(f"cache.address={cache.listen}", classes)
    told = await usage(stub, ask(long, ttl_class="1h"))
    assert told.tokens.hit_tokens_by_tier.host == BLOCKS * 16
    assert await resident(second, brief) == 0


async def test_a_hit_in_the_class_renews_and_no_class_is_for_ever(
    start_cache: Any, start: Any
) -> None:
    cache = await start_cache()
    worker, stub = await start(f"cache.address={cache.listen}", "cache.ttl_classes=short=2,1h=3600")
    texts = [PROMPT + name for name in ("renewed", "kept", "left")]
    for text in texts:
        await usage(stub, ask(text[::-1], ttl_class="short", max_completion_tokens=1))
    renewed, kept, left = (text[::-1] for text in texts)
    await usage(stub, ask(renewed, ttl_class="1h", max_completion_tokens=1))
    await usage(stub, ask(kept, max_completion_tokens=1))
    while await resident(worker, left):
        await asyncio.sleep(0.05)
    assert await resident(worker, renewed) == (len(renewed) - 1) // 16
    assert await resident(worker, kept) == (len(kept) - 1) // 16
    await worker.drain()
    _, stub = await start(f"cache.address={cache.listen}")
    for text, hits in ((renewed, True), (kept, True), (left, False)):
        told = await usage(stub, ask(text, cache_mode=READ_ONLY))
        assert bool(told.tokens.hit_tokens_by_tier.host) is hits


async def test_stored_blocks_are_their_scopes(start_cache: Any, start: Any, tmp_path: Any) -> None:
    """The public prefix is nobody's, generated tokens are the request's own scope's."""
    public = "You are the keeper of a lighthouse. " * 2
    folder = tmp_path / "public"
    folder.mkdir()
    (folder / "keeper.txt").write_text(public)
    cache = await start_cache()
    worker, stub = await start(
        f"cache.address={cache.listen}", f"public_prefix_directory={folder}", "tenants=acme"
    )
    chat = pb.ChatPrompt(
        messages=[
            pb.ChatMessage(role="system", content=public),
            pb.ChatMessage(role="user", content=PROMPT),
        ]
    )
    who: dict[str, Any] = {"tenant_id": "acme", "project_id": "search", "user_id": "ann"}
    for scope in (pb.CACHE_SCOPE_ORGANISATION, pb.CACHE_SCOPE_USER):
        request = pb.GenerateRequest(
            **who,
            cache_scope=scope,
            chat=chat,
            max_completion_tokens=20,
            ignore_end_of_sequence=True,
        )
        await usage(stub, request)
    await worker.drain()
    async with grpc.aio.insecure_channel(cache.listen) as channel:
        stats_stub: Any = cache_pb2_grpc.CacheServiceStub(channel)
        stats = await stats_stub.GetStats(cache_pb2.GetStatsRequest(owners_max=9))
    found = {owner.owner: owner.tiers[0].block_count for owner in stats.owners.owners}
    shared = stats.tiers[0].block_count - sum(found.values())
    assert set(found) == {"acme", "acme/search/ann"}
    assert found["acme"] == found["acme/search/ann"] > len(PROMPT) // 16
    assert shared >= len(public) // 16


async def test_prefix_units_through_every_tier_and_a_restart(start_cache: Any, start: Any) -> None:
    cache = await start_cache()
    settings = (f"cache.address={cache.listen}", "cache.prefix_unit=deepseek")
    first, stub = await start(*settings)
    model = await stub.GetModel(pb.GetModelRequest())
    assert (model.prefix_unit, model.prefix_unit_interval_tokens) == ("deepseek", 4096)
    shared = "a long text that many ask about, again and again."[:48]
    ab, ac, ad = (shared + ending * 20 for ending in ("b?", "c!", "d."))
    told = [await usage(stub, ask(text, max_completion_tokens=1)) for text in (ab, ac)]
    assert [each.tokens.hit_tokens for each in told] == [0, 0]
    await first.drain()
    second, stub = await start(*settings)
    within = await usage(stub, ask(shared[:33] + "z" * 20, cache_mode=READ_ONLY))
    assert within.tokens.hit_tokens == 0
    assert within.miss_reason == block_pb2.MISS_REASON_WITHIN_UNIT
    assert (await usage(stub, ask(ad))).tokens.hit_tokens_by_tier.host == 48
    # Now the unit is one of the worker's pages as well.
    assert await resident(second, shared + "e" * 20) == 3
    await second.drain()
    _, stub = await start(f"cache.address={cache.listen}")
    assert (await stub.GetModel(pb.GetModelRequest())).prefix_unit == "every_block"
    half = await usage(stub, ask(shared[:33] + "z" * 20))
    assert half.tokens.hit_tokens_by_tier.host == 32
