"""An index filled from a recovered SSD is the index that had been before, and lives on the same."""

import random
from collections.abc import Iterator

import numpy as np
import pytest

from cache_service.block_tree import ABSENT, NOWHERE
from cache_service.index import BlockIndex
from kvtier.blocks import MissReason
from kvtier.keys import NamespaceId
from storage.host.arena import HostArena
from storage.policy.greedy_dual import GreedyDual
from storage.ssd.recovered import RecoveredColumns
from storage.tier import NEVER, PAGE_BYTES

NAMESPACES = (NamespaceId(b"a" * 32), NamespaceId(b"b" * 32))
SIZES = np.array([100, 5000])


@pytest.fixture
def index() -> Iterator[BlockIndex]:
    arena = HostArena(64 * PAGE_BYTES, extent_bytes=16 * PAGE_BYTES)
    yield BlockIndex(arena, GreedyDual(), GreedyDual(), evicted_memory_count=4)
    arena.close()


def forest(seed: int, count: int) -> RecoveredColumns:
    """A random forest over five segments, parents first."""
    rng = random.Random(seed)
    parents = [rng.randrange(-1, row) if row else -1 for row in range(count)]
    namespaces = np.zeros(count, np.int32)
    for row, parent in enumerate(parents):
        namespaces[row] = rng.randrange(2) if parent < 0 else namespaces[parent]
    ends = [rng.choice([NEVER, rng.randrange(2000)]) for _ in range(count)]
    hashes = np.frombuffer(rng.randbytes(32 * count), "V32")
    return RecoveredColumns(
        hashes=hashes,
        parent_row=np.array(parents, np.int32),
        namespace_ids=NAMESPACES,
        namespace_row=namespaces,
        segment_id=np.array([rng.randrange(5) for _ in range(count)], np.uint32),
        segment_generations=np.array([3, 1, 4, 1, 5], np.uint64),
        offset=np.arange(1, count + 1, dtype=np.uint64) * PAGE_BYTES,
        payload_bytes=SIZES[namespaces].astype(np.uint64),
        stored_bytes=SIZES[namespaces].astype(np.uint64),
        checksum=np.arange(count, dtype=np.uint64) * 7,
        codec=np.zeros(count, np.uint32),
        sequence=np.array(rng.sample(range(10 * count), count), np.uint64),
        expire_second=np.array(ends, np.uint32),
        owners=("", "acme", "acme/search", "beta/x")[: count + 1],
        owner_row=np.array([rng.randrange(4) for _ in range(count)], np.int32),
        unit_end=np.array([rng.random() < 0.2 for _ in range(count)], np.bool_),
    )


@pytest.mark.parametrize("seed", range(5))
def test_every_block_is_where_it_was(index: BlockIndex, seed: int) -> None:
    found = forest(seed, 300)
    index.recover(found)
    index.check_integrity()
    tree = index.tree
    assert len(index) == index.ssd_count == 300
    for row, (record, location) in enumerate(found):
        at = tree.find(record.block_hash)
        assert at == row
        assert tree.ssd_record(at) == record
        assert tree.location(at) == location
    assert index.ssd_payload_bytes == int(found.payload_bytes.sum())
    for segment in range(5):
        offsets = [tree.location(row).offset for row in index.segments.rows(segment)]  # type: ignore[arg-type]
        assert offsets == sorted(found.offset[found.segment_id == segment].tolist())


def test_blocks_come_and_go_after_a_recovery_as_before(index: BlockIndex) -> None:
    found = forest(9, 200)
    index.recover(found)
    rng = random.Random(10)
    while len(index) > 50:
        row = rng.choice(list(index.tree))
        before = len(index)
        forgotten = index.drop_ssd(row, MissReason.EVICTED)
        assert before - len(index) == len(forgotten) > 0
        new = index.add(rng.randbytes(32), NOWHERE, NAMESPACES[0], 100)  # type: ignore[arg-type]
        slab = index._arena.allocate(100)
        assert slab is not None
        index.put_host(new, slab, 1)
        index.check_integrity()
        assert index.host_victim() == new
        index._arena.free(index.evict_host(new))
        assert index.tree.find(forgotten[0]) == ABSENT


def test_an_empty_disk_is_an_empty_index(index: BlockIndex) -> None:
    index.recover(forest(0, 0))
    index.check_integrity()
    assert len(index) == 0
