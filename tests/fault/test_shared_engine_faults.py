"""The shared tier over an engine that is slow, hung, refuses, or returns what nobody wrote."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvtier.keys import NamespaceId, payload_checksum
from storage.errors import CorruptBlockError, TierIOError
from storage.shared.extent import (
    BadExtentError,
    ExtentBlock,
    ExtentHead,
    OtherKeyError,
    extent_bytes,
    pack,
    unpack,
)
from storage.shared.levels import Extent
from storage.shared.object_store import open_object_store
from storage.shared.sealing import Sealing
from storage.shared.tier import ChainView, SharedLimits, SharedTier
from storage.tier import NO_PARENT
from tests.shared.chains import (
    BLOCK_BYTES,
    NAMESPACE,
    block_of,
    get,
    names,
    payload_of,
    put,
    put_turns,
    view,
)
from tests.shared.faulty_store import FaultyStore, hang, refuse

KEY = bytes(range(32))
WHOLE = Extent(0, 4)


@pytest.fixture
def store(tmp_path: Path) -> FaultyStore:
    return FaultyStore(open_object_store(f"file://{tmp_path}/shared", {}))


@pytest.fixture(params=["clear", "sealed"])
def sealing(request: pytest.FixtureRequest) -> Sealing | None:
    return Sealing([KEY]) if request.param == "sealed" else None


@pytest.fixture
async def tier(store: FaultyStore, sealing: Sealing | None) -> AsyncIterator[SharedTier]:
    opened = SharedTier(store, SharedLimits(find_seconds=0.2, request_seconds=0.2), sealing)
    yield opened
    await opened.close()


def memory(extent: Extent = WHOLE) -> dict[int, memoryview]:
    return {at: memoryview(bytearray(BLOCK_BYTES)) for at in range(extent.start, extent.end)}


@pytest.mark.parametrize("call", ["find", "read", "write", "forget"])
async def test_a_hung_engine_ends_every_call_by_its_deadline(
    tier: SharedTier, store: FaultyStore, call: str
) -> None:
    chain = names(4)
    await put(tier, chain, WHOLE)
    store.before = hang
    calls = {
        "find": lambda: tier.find(view(chain), 0),
        "read": lambda: tier.read(view(chain), WHOLE, memory()),
        "write": lambda: put(tier, chain, Extent(0, 1)),
        "forget": lambda: tier.forget(NAMESPACE, BLOCK_BYTES, chain),
    }
    began = asyncio.get_running_loop().time()
    with pytest.raises(TierIOError, match="did not answer") as caught:
        await calls[call]()
    assert caught.value.metadata["cause"] == "timeout"
    assert asyncio.get_running_loop().time() - began < 5
    store.before = lambda _call: None
    assert await get(tier, chain, await tier.find(view(chain), 0)) == 4


async def test_an_engine_that_refuses_is_an_error_and_then_serves_again(
    tier: SharedTier, store: FaultyStore
) -> None:
    chain = names(4)
    await put(tier, chain, WHOLE)
    store.before = refuse
    with pytest.raises(TierIOError):
        await tier.find(view(chain), 0)
    with pytest.raises(TierIOError):
        await tier.read(view(chain), WHOLE, memory())
    with pytest.raises(TierIOError):
        await put(tier, chain, Extent(0, 1))
    store.before = lambda _call: None
    assert await get(tier, chain, [WHOLE]) == 4


async def test_what_is_gone_between_search_and_read_is_a_miss(
    tier: SharedTier, store: FaultyStore
) -> None:
    chain = names(40)
    await put_turns(tier, chain, [40])
    found = await tier.find(view(chain), 0)
    store.spoil = lambda name, content: None if chain[31].hex() in name else content
    assert await get(tier, chain, found) == 16


async def test_bad_content_is_deleted_so_that_it_can_be_written_again(
    tier: SharedTier, store: FaultyStore
) -> None:
    chain = names(4)
    await put(tier, chain, WHOLE)
    store.spoil = lambda _name, content: content[:-1] + bytes([content[-1] ^ 1])
    with pytest.raises(CorruptBlockError) as caught:
        await tier.read(view(chain), WHOLE, memory())
    assert caught.value.metadata["cause"] == "content"
    store.spoil = lambda _name, content: content
    assert await tier.find(view(chain), 0) == []
    assert await put(tier, chain, WHOLE) > 0
    assert await get(tier, chain, [WHOLE]) == 4


async def test_what_another_key_sealed_is_refused_and_stays(store: FaultyStore) -> None:
    limits = SharedLimits(find_seconds=5, request_seconds=5)
    ours = SharedTier(store, limits, Sealing([KEY]))
    chain = names(4)
    await put(ours, chain, WHOLE)
    for other in (Sealing([secrets.token_bytes(32)]), None):
        with pytest.raises(CorruptBlockError) as caught:
            await SharedTier(store, limits, other).read(view(chain), WHOLE, memory())
        assert caught.value.metadata["cause"] == "key"
    # A key that was replaced still opens what it sealed.
    newer = SharedTier(store, limits, Sealing([secrets.token_bytes(32), KEY]))
    assert await get(newer, chain, [WHOLE]) == 4


async def test_an_older_generation_is_not_seen(store: FaultyStore) -> None:
    limits = SharedLimits(find_seconds=5, request_seconds=5)
    old, new = SharedTier(store, limits, None, 1), SharedTier(store, limits, None, 2)
    chain = names(4)
    await put(old, chain, WHOLE)
    assert await new.find(view(chain), 0) == []
    # Not even where somebody copies it to where the new one looks.
    raw = await store.read(old.name_of(NAMESPACE, chain[3], 4), 1 << 20)
    assert raw is not None
    await store.write(new.name_of(NAMESPACE, chain[3], 4), raw)
    with pytest.raises(CorruptBlockError):
        await new.read(view(chain), WHOLE, memory())


async def test_nobody_s_file_below_the_directory_is_deleted(tmp_path: Path) -> None:
    (tmp_path / "somebody.txt").write_text("else's")
    tier = SharedTier(open_object_store(f"file://{tmp_path}", {}), SharedLimits())
    await put(tier, names(4), WHOLE)
    assert await tier.forget_all(None) == 1
    assert (tmp_path / "somebody.txt").read_text() == "else's"


async def test_memory_is_not_touched_after_a_cancelled_read(
    tier: SharedTier, store: FaultyStore
) -> None:
    chain = names(16)
    await put(tier, chain, Extent(0, 16))
    for delay in range(12):
        targets = memory(Extent(0, 16))
        reading = asyncio.ensure_future(tier.read(view(chain), Extent(0, 16), targets))
        for _ in range(delay * 3):
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait({reading})
        for target in targets.values():
            target[:] = bytes(BLOCK_BYTES)
        await asyncio.sleep(0.01)
        assert all(bytes(target) == bytes(BLOCK_BYTES) for target in targets.values())


async def test_memory_is_not_touched_after_a_read_that_was_cancelled_more_than_once(
    store: FaultyStore,
) -> None:
    size, chain = 4 << 20, names(4)
    tier = SharedTier(store, SharedLimits(30, 30), Sealing([KEY]))
    whole = ChainView(NAMESPACE, size, 0, chain)
    payload = bytes(size)
    blocks = [ExtentBlock(name, payload_checksum(name, payload)) for name in chain]
    await tier.write(whole, WHOLE, NO_PARENT, blocks, [memoryview(payload)] * 4)
    for _ in range(5):
        targets = {at: memoryview(bytearray(b"x" * size)) for at in range(4)}
        reached = asyncio.Event()

        def read(_call: str, reached: asyncio.Event = reached) -> None:
            reached.set()

        store.after = read
        reading = asyncio.ensure_future(tier.read(whole, WHOLE, targets))
        await reached.wait()
        for _ in range(3):
            await asyncio.sleep(0)
            reading.cancel()
        await asyncio.wait({reading})
        before = [bytes(each) for each in targets.values()]
        await asyncio.sleep(0.05)
        assert [bytes(each) for each in targets.values()] == before
    await tier.close()


@pytest.mark.parametrize("first", [0, 3, 4])
async def test_an_extent_that_continues_another_block_is_refused(
    tier: SharedTier, store: FaultyStore, first: int
) -> None:
    chain = names(8)
    part, wrong = chain[4:], names(1, "another")[0]
    extent = Extent(4, 8)
    payloads = [memoryview(payload_of(name)) for name in part]
    await tier.write(view(chain), extent, wrong, [block_of(name) for name in part], payloads)
    asked = ChainView(NAMESPACE, BLOCK_BYTES, first, chain[first:], chain[first - 1])
    with pytest.raises(CorruptBlockError, match="continues another"):
        await tier.read(asked, extent, memory(extent))
    assert await put(tier, chain, extent) > 0
    assert await tier.read(asked, extent, memory(extent))


@pytest.mark.parametrize("more", [1, 1 << 20])
async def test_an_object_that_is_too_long_is_not_read_and_goes(
    tier: SharedTier, store: FaultyStore, more: int
) -> None:
    chain = names(4)
    content = memoryview(bytes(extent_bytes(4, BLOCK_BYTES) + more))
    await store.write(tier.name_of(NAMESPACE, chain[3], 4), content)
    read: list[str] = []
    store.spoil = lambda name, content: read.append(name) or content
    with pytest.raises(CorruptBlockError) as caught:
        await tier.read(view(chain), WHOLE, memory())
    assert caught.value.metadata["cause"] == "size"
    assert not read
    assert await tier.find(view(chain), 0) == []


HEAD = ExtentHead(NAMESPACE, 0, BLOCK_BYTES)
CHAIN = names(4, "spoiled")
PAYLOADS = [memoryview(payload_of(name)) for name in CHAIN]
BLOCKS = [block_of(name, "acme") for name in CHAIN]
OBJECTS = {
    key: bytes(pack(HEAD, NO_PARENT, BLOCKS, PAYLOADS, Sealing([key]) if key else None))
    for key in (b"", KEY)
}


def opened(raw: bytes, key: bytes) -> None:
    """Reads it as the chain's extent: every byte is right, or it raises."""
    targets = {at: memoryview(bytearray(BLOCK_BYTES)) for at in range(4)}
    sealing = Sealing([key]) if key else None
    blocks = unpack(memoryview(raw), HEAD, dict(enumerate(CHAIN)), 4, targets, sealing)
    assert blocks == BLOCKS
    assert [bytes(each) for each in targets.values()] == [bytes(each) for each in PAYLOADS]


@pytest.mark.parametrize("key", [b"", KEY])
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_change_of_an_extent_s_bytes_is_ever_read(key: bytes, data: st.DataObject) -> None:
    raw = bytearray(OBJECTS[key])
    kind = data.draw(st.sampled_from(["flip", "cut", "longer", "swap", "zero"]))
    at = data.draw(st.integers(0, 600) | st.integers(0, len(raw) - 1))
    if kind == "flip":
        raw[at] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del raw[at:]
    elif kind == "longer":
        raw += data.draw(st.binary(min_size=1, max_size=5000))
    elif kind == "zero":
        end = data.draw(st.integers(at, min(len(raw), at + 5000)))
        raw[at:end] = bytes(end - at)
    else:
        other = data.draw(st.integers(0, len(raw) - 1))
        raw[at], raw[other] = raw[other], raw[at]
    if bytes(raw) == OBJECTS[key]:
        opened(bytes(raw), key)
        return
    with pytest.raises((BadExtentError, OtherKeyError)):
        opened(bytes(raw), key)


@pytest.mark.parametrize("key", [b"", KEY])
@given(st.binary(max_size=20_000))
def test_foreign_bytes_are_never_read(key: bytes, raw: bytes) -> None:
    with pytest.raises((BadExtentError, OtherKeyError)):
        opened(raw, key)
    with pytest.raises((BadExtentError, OtherKeyError)):
        opened(OBJECTS[key][: 8 + len(raw) % 300] + raw, key)


@pytest.mark.parametrize("key", [b"", KEY])
def test_another_extent_is_not_read_in_its_place(key: bytes) -> None:
    sealing = Sealing([key]) if key else None
    others = names(4, "others")
    blocks = [block_of(name) for name in others]
    payloads = [memoryview(payload_of(name)) for name in others]
    foreign = bytes(pack(HEAD, NO_PARENT, blocks, payloads, sealing))
    elsewhere = ExtentHead(NamespaceId(bytes(32)), 0, BLOCK_BYTES)
    for raw in (foreign, bytes(pack(elsewhere, NO_PARENT, BLOCKS, PAYLOADS, sealing))):
        with pytest.raises(BadExtentError):
            opened(raw, key)
