"""Blocks with known content, for every test of the SSD tier."""

import hashlib
import random
from dataclasses import dataclass

from kvtier.keys import BlockHash, NamespaceId, payload_checksum
from storage.ssd.files import aligned_buffer
from storage.ssd.tier import SsdTier
from storage.tier import NO_PARENT, PAGE_BYTES, BlockRecord, SsdLocation, rounded

NAMESPACE = NamespaceId(hashlib.sha256(b"a namespace").digest())
SEGMENT_BYTES = 16 * PAGE_BYTES
CAPACITY_BYTES = 6 * SEGMENT_BYTES


@dataclass(frozen=True)
class Block:
    """A record and its payload as it has to come back."""

    record: BlockRecord
    payload: bytes

    @property
    def hash(self) -> BlockHash:
        return self.record.block_hash

    def view(self) -> memoryview:
        """Fresh aligned memory with the payload in it."""
        view = aligned_buffer(rounded(len(self.payload)))
        view[: len(self.payload)] = self.payload
        return view


def block(name: object, parent: BlockHash = NO_PARENT, payload_bytes: int = 5000) -> Block:
    """The same arguments give the same block, in every process."""
    seed = f"{name}/{parent.hex()}/{payload_bytes}"
    return _block(seed, random.Random(seed).randbytes(payload_bytes), parent)


def soft_block(name: object, parent: BlockHash = NO_PARENT, payload_bytes: int = 5000) -> Block:
    """As 16-bit floats are: the high bytes say little, so that half of the payload shrinks."""
    seed = f"soft {name}/{parent.hex()}/{payload_bytes}"
    payload = bytearray(random.Random(seed).randbytes(payload_bytes))
    payload[1::2] = b"\x3f" * (payload_bytes // 2)
    return _block(seed, bytes(payload), parent)


def _block(seed: str, payload: bytes, parent: BlockHash) -> Block:
    block_hash = BlockHash(hashlib.sha256(seed.encode()).digest())
    checksum = payload_checksum(block_hash, payload)
    record = BlockRecord(block_hash, parent, NAMESPACE, len(payload), checksum)
    return Block(record, payload)


def chain(name: object, count: int, payload_bytes: int = 5000) -> list[Block]:
    """`count` blocks, each the parent of the next."""
    blocks: list[Block] = []
    for i in range(count):
        parent = blocks[-1].hash if blocks else NO_PARENT
        blocks.append(block(f"{name}-{i}", parent, payload_bytes))
    return blocks


async def append(tier: SsdTier, blocks: list[Block]) -> list[SsdLocation]:
    return await tier.append([(b.record, b.view()) for b in blocks])


async def read(tier: SsdTier, record: BlockRecord, location: SsdLocation) -> bytes:
    into = aligned_buffer(rounded(record.payload_bytes))
    await tier.read(record, location, into)
    assert not any(into[record.payload_bytes :]), "bytes behind the payload must be zero"
    return bytes(into[: record.payload_bytes])
