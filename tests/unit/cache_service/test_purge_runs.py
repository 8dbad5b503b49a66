"""A purge takes runs of blocks out at once: to the same end as one block after the other."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from cache_service import purging
from cache_service.cache import Cache
from cache_service.forgetting import SLICE_HASHES, ForgetQueue
from cache_service.hints import Hints
from cache_service.listener import QuietListener
from cache_service.owner_runs import OwnerRuns
from cache_service.purge_views import PurgeKind, PurgeTarget, PurgeView, SsdForgetting
from cache_service.views import CacheLimits
from kvtier.keys import BlockHash
from storage.errors import TierIOError
from storage.host.arena import HostArena
from storage.ssd.tier import SsdTier
from storage.tier import PAGE_BYTES
from tests.cache_state import index_state
from tests.unit.cache_service.conftest import chain_of

SEGMENT_BYTES = 33 * PAGE_BYTES
STEMS, STEM_BLOCKS, TWIG_BLOCKS = 3, 6, 5


def opened(directory: Path) -> SsdTier:
    return SsdTier.open(directory, capacity_bytes=16 * SEGMENT_BYTES, segment_bytes=SEGMENT_BYTES)


def new_arena() -> HostArena:
    return HostArena(128 * PAGE_BYTES, extent_bytes=16 * PAGE_BYTES)


def stems() -> list[list[BlockHash]]:
    """Chains that fork: of each stem two twigs, and one that is as long as the stem."""
    found = []
    for stem in range(STEMS):
        names = [(stem, i) for i in range(STEM_BLOCKS)]
        found.append(chain_of(*names))
        found += [chain_of(*names, *range(twig, twig + TWIG_BLOCKS)) for twig in (100, 200)]
    return found


@pytest.fixture
async def stored(tmp_path: Path, limits: CacheLimits, clock: Any, connect: Any) -> Path:
    """A directory with the stems, of several owners, some with an end, some with units."""
    arena = new_arena()
    cache = Cache(arena, opened(tmp_path / "made"), limits, clock, QuietListener())
    client = connect(cache)
    for i, chain in enumerate(stems()):
        owner = ("acme", "acme/search", "umbra")[i % 3]
        hints = Hints(
            ttl_seconds=3600 if i % 2 else None,
            owners=OwnerRuns(("", owner), (2, len(chain))),
            unit_ends=(len(chain) - 1,),
        )
        await client.store(chain, hints)
    await cache.drain()
    arena.close()
    return tmp_path / "made"


async def purged(
    cache: Cache, target: PurgeTarget, connect: Any, warm: list[int], used: list[int]
) -> tuple[PurgeView, bytes, list[int]]:
    """The receipt, the index and what was noted for events, after a purge of blocks of which some
    are in host memory too, and some are held."""
    client, index = connect(cache), cache._parts.index
    for number in warm:
        chain = stems()[number]
        for count in range(1, len(chain)):
            # One by one, so that they come into host memory in one order only.
            client.release(await client.acquire(chain[:count]))
        await client.acquire(chain)
    index.use(used)
    view = await cache.purging.start(target, dry_run=False)
    cache.check_integrity()
    assert index._changes is not None
    noted = [*index._changes._noted, *index._changes._parents]
    # A row that is nobody's keeps its mark until it is given again.
    columns = index.tree.columns
    columns.array("unit_end")[columns.array("cached") == 0] = 0
    return view, index_state(cache), noted


@pytest.mark.parametrize(
    ("target", "warm", "used"),
    [
        (PurgeTarget(PurgeKind.EVERYTHING), [], []),
        (PurgeTarget(PurgeKind.EVERYTHING), [0, 4], [1, 7, 20]),
        (PurgeTarget(PurgeKind.OWNER, owner="acme"), [], [3]),
        (PurgeTarget(PurgeKind.OWNER, owner="acme/search"), [7], []),
        (PurgeTarget(PurgeKind.OWNER, owner="umbra"), [2, 5], [2]),
    ],
)
async def test_runs_leave_as_one_block_after_the_other(
    stored: Path,
    limits: CacheLimits,
    clock: Any,
    connect: Any,
    target: PurgeTarget,
    warm: list[int],
    used: list[int],
) -> None:
    ends = []
    for at_once in (4, 1000):
        arena, directory = new_arena(), stored.with_name("copy")
        shutil.copytree(stored, directory)
        cache = Cache(arena, opened(directory), limits, clock, QuietListener())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(purging, "RUN_BLOCKS_MIN", at_once)
            ends.append(await purged(cache, target, connect, warm, used))
        await cache.drain()
        arena.close()
        shutil.rmtree(directory)
    (view, index, noted), (other, same_index, same_noted) = ends
    assert view.block_count == other.block_count > 0
    assert (view.copies, view.hashes_sha256) == (other.copies, other.hashes_sha256)
    assert view.ssd_forgetting is SsdForgetting.DURABLE
    assert noted == same_noted
    assert index == same_index


async def test_what_is_forgotten_goes_in_slices_and_what_failed_waits(stored: Path) -> None:
    ssd = opened(stored)
    queue = ForgetQueue(ssd)
    queue.add(chain_of(*range(2 * SLICE_HASHES + 1)))
    flushed = queue.next_flush()
    await queue.flush()
    await flushed
    assert not queue.due
    queue.add(chain_of(*range(SLICE_HASHES + 1)))
    flushed = queue.next_flush()
    flushing = asyncio.ensure_future(queue.flush())
    await asyncio.sleep(0)
    await ssd.close()
    # The slice under way ended; the disk took no other.
    with pytest.raises(TierIOError):
        await flushing
    with pytest.raises(TierIOError):
        await flushed
    assert queue._hashes == chain_of(*range(SLICE_HASHES + 1))[SLICE_HASHES:]
