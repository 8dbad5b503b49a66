"""Chains, payloads and tiers for tests of the shared tier."""

import hashlib
from collections.abc import Sequence

from kvtier.keys import BlockHash, NamespaceId, payload_checksum
from storage.shared.extent import ExtentBlock
from storage.shared.levels import Extent, completed, level_sizes
from storage.shared.tier import ChainView, SharedTier
from storage.tier import NO_PARENT

BLOCK_BYTES = 4000
NAMESPACE = NamespaceId(hashlib.sha256(b"a namespace").digest())
SIZES = level_sizes(BLOCK_BYTES)


def names(count: int, salt: str = "") -> list[BlockHash]:
    found, parent = [], salt.encode()
    for number in range(count):
        parent = hashlib.sha256(parent + number.to_bytes(4, "little")).digest()
        found.append(BlockHash(parent))
    return found


def payload_of(name: BlockHash) -> bytes:
    return hashlib.shake_128(name).digest(BLOCK_BYTES)


def block_of(name: BlockHash, owner: str = "") -> ExtentBlock:
    return ExtentBlock(name, payload_checksum(name, payload_of(name)), owner=owner)


def view(hashes: Sequence[BlockHash], first: int = 0) -> ChainView:
    """Of a chain's blocks from `first` on."""
    return ChainView(NAMESPACE, BLOCK_BYTES, first, hashes[first:])


async def put(tier: SharedTier, hashes: Sequence[BlockHash], extent: Extent) -> int:
    part = hashes[extent.start : extent.end]
    parent = hashes[extent.start - 1] if extent.start else NO_PARENT
    payloads = [memoryview(payload_of(name)) for name in part]
    return await tier.write(view(hashes), extent, parent, [block_of(n) for n in part], payloads)


async def put_turns(
    tier: SharedTier,
    hashes: Sequence[BlockHash],
    ends: Sequence[int],
    stops: Sequence[int] = (),
) -> None:
    """Writes what a conversation leaves behind that reached these blocks, turn by turn."""
    first = 0
    for end in ends:
        for extent in completed(SIZES, first, end, lambda _first, _end: True, stops):
            await put(tier, hashes, extent)
        first = end


async def get(tier: SharedTier, hashes: Sequence[BlockHash], extents: Sequence[Extent]) -> int:
    """Reads what was found and compares every byte; how far it goes. Stops at what is missing."""
    reached = 0
    for extent in extents:
        memory = {at: memoryview(bytearray(BLOCK_BYTES)) for at in range(extent.start, extent.end)}
        blocks = await tier.read(view(hashes), extent, memory)
        if blocks is None:
            break
        assert [each.block_hash for each in blocks] == list(hashes[extent.start : extent.end])
        for at, filled in memory.items():
            assert bytes(filled) == payload_of(hashes[at])
        reached = extent.end
    return reached
