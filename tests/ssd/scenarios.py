"""What an SSD tier does, one thing at a time, so that it can be broken at every step of it.

A scenario is prepared undisturbed and left closed. `act` opens it on a stage, says when the thing
itself begins, and does it. What has to be there afterwards is known beforehand, so that a process
that finds the wreck can tell.
"""

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from storage.env import Env
from storage.errors import TierIOError
from storage.ssd.key_ring import NO_ENCRYPTION, Encryption
from storage.ssd.tier import SsdTier
from storage.tier import SegmentId
from tests.ssd.blocks import CAPACITY_BYTES, SEGMENT_BYTES, Block, append, block, chain, soft_block
from tests.ssd.faulty_env import FaultyEnv

ROOTS = [block(f"root {i}") for i in range(30)]
"""Five of them fill a segment."""
NEW = chain("new", 4)
SOFT = [soft_block(f"soft {i}") for i in range(3)]


class Stage:
    """Where a scenario acts: a machine, and the sign that the thing itself begins."""

    def __init__(self, env: Env, begins: Callable[[], None]) -> None:
        self._env = env
        self.begins = begins
        self._tiers: list[SsdTier] = []

    def open(
        self,
        path: Path,
        capacity_bytes: int = CAPACITY_BYTES,
        codec: str = "none",
        encryption: Encryption = NO_ENCRYPTION,
    ) -> SsdTier:
        self._tiers.append(opened(path, self._env, capacity_bytes, codec, encryption))
        return self._tiers[-1]

    @property
    def last(self) -> SsdTier:
        """The one that was opened last."""
        return self._tiers[-1]

    async def close(self) -> None:
        """Whatever is still open."""
        for tier in self._tiers:
            await tier.close()


MASTER, OLD_MASTER = bytes(range(32)), bytes(range(1, 33))
ENCRYPTED = Encryption((MASTER,))

Act = Callable[[Path, Stage], Awaitable[None]]


@dataclass(frozen=True)
class Scenario:
    """`before` is committed when `act` begins; it adds and removes blocks."""

    name: str
    prepare: Callable[[Path], Awaitable[None]]
    act: Act
    before: tuple[Block, ...] = ()
    added: tuple[Block, ...] = ()
    removed: tuple[Block, ...] = ()
    capacity_bytes: int = CAPACITY_BYTES
    problems: bool = False
    """The next start has damage to report: a kill alone is none."""
    encryption: Encryption = NO_ENCRYPTION
    """What it is opened with afterwards."""
    direct: bool = False
    """Needs direct I/O; without it there is nothing to break."""


def opened(
    path: Path,
    env: Env | None = None,
    capacity_bytes: int = CAPACITY_BYTES,
    codec: str = "none",
    encryption: Encryption = NO_ENCRYPTION,
) -> SsdTier:
    """Buffered unless `env` says otherwise: pre-writing would make the order a matter of timing."""
    return SsdTier.open(
        path,
        capacity_bytes=capacity_bytes,
        segment_bytes=SEGMENT_BYTES,
        reader_threads=1,
        codec=codec,
        encryption=encryption,
        env=env or FaultyEnv(refuse_direct=True),
    )


async def _store(path: Path, blocks: list[Block]) -> None:
    tier = opened(path)
    await append(tier, blocks)
    await tier.close()


async def _store_encrypted(path: Path, blocks: list[Block], master: bytes = MASTER) -> None:
    tier = opened(path, encryption=Encryption((master,)))
    await append_owned(tier, blocks)
    await tier.close()


async def append_owned(tier: SsdTier, blocks: list[Block]) -> None:
    """As acme's."""
    await tier.append([(b.record, b.view()) for b in blocks], (), ["acme"] * len(blocks))


async def _two_encrypted(path: Path) -> None:
    await _store_encrypted(path, ROOTS[:2])


async def _two_under_another(path: Path) -> None:
    await _store_encrypted(path, ROOTS[:2], OLD_MASTER)


async def _two_encrypted_without_an_index(path: Path) -> None:
    await _store_encrypted(path, ROOTS[:2])
    shutil.rmtree(path / "index")


async def _nothing(path: Path) -> None:
    return


async def _two_blocks(path: Path) -> None:
    await _store(path, ROOTS[:2])


async def _four_blocks(path: Path) -> None:
    await _store(path, ROOTS[:4])


async def _twelve_blocks(path: Path) -> None:
    await _store(path, ROOTS[:12])


async def _older_index(path: Path) -> None:
    """Two blocks lie behind the tail that the index knows, as after a kill."""
    await _store(path, ROOTS[:2])
    shutil.copytree(path / "index", path.parent / f"{path.name}-older")
    await _store(path, ROOTS[2:4])
    shutil.rmtree(path / "index")
    (path.parent / f"{path.name}-older").rename(path / "index")


async def _no_index(path: Path) -> None:
    await _store(path, ROOTS[:12])
    shutil.rmtree(path / "index")


async def _recycled(path: Path) -> None:
    """Segment 0 is free again and full of records of its first generation."""
    tier = opened(path)
    await append(tier, ROOTS[:10])
    await tier.forget([b.hash for b in ROOTS[:5]])
    await tier.recycle(SegmentId(0))
    await tier.close()


async def _forgotten(path: Path) -> None:
    tier = opened(path)
    await append(tier, ROOTS[:7])
    await tier.forget([b.hash for b in ROOTS[:5]])
    await tier.close()


def _opening(capacity_bytes: int = CAPACITY_BYTES) -> Act:
    async def act(path: Path, stage: Stage) -> None:
        stage.begins()
        stage.open(path, capacity_bytes)

    return act


def _storing(blocks: list[Block], codec: str = "none") -> Act:
    async def act(path: Path, stage: Stage) -> None:
        tier = stage.open(path, codec=codec)
        stage.begins()
        await append(tier, blocks)

    return act


async def _forget(path: Path, stage: Stage) -> None:
    tier = stage.open(path)
    stage.begins()
    await tier.forget([b.hash for b in ROOTS[:2]])


async def _relog(path: Path, stage: Stage) -> None:
    tier = stage.open(path)
    places = dict(tier.recovered())
    stage.begins()
    await tier.relog([(b.record, places[b.record]) for b in ROOTS[:3]])


async def _recycle(path: Path, stage: Stage) -> None:
    tier = stage.open(path)
    stage.begins()
    await tier.recycle(SegmentId(0))


async def _store_encrypted_behind(path: Path, stage: Stage) -> None:
    tier = stage.open(path, encryption=ENCRYPTED)
    stage.begins()
    await append_owned(tier, NEW[:2])


async def _open_encrypted(path: Path, stage: Stage) -> None:
    stage.begins()
    stage.open(path, encryption=ENCRYPTED)


async def _take_another_master(path: Path, stage: Stage) -> None:
    stage.begins()
    stage.open(path, encryption=Encryption((MASTER, OLD_MASTER)))


async def _shred(path: Path, stage: Stage) -> None:
    """As a purge does it: forget, then destroy."""
    tier = stage.open(path, encryption=ENCRYPTED)
    stage.begins()
    await tier.forget([b.hash for b in ROOTS[:2]])
    done = await tier.destroy_keys("acme")
    if not done.durable:
        raise TierIOError(done.problem)


async def _prewrite(path: Path, stage: Stage) -> None:
    tier = stage.open(path)
    stage.begins()
    await append(tier, NEW[:2])
    while tier.io_mode == "direct" and any(s.state == "free" for s in tier.segments()):
        before = tier.stats().prewritten_bytes
        await asyncio.sleep(0.02)
        if before == tier.stats().prewritten_bytes:
            return


async def _close(path: Path, stage: Stage) -> None:
    tier = stage.open(path)
    await append(tier, NEW)
    stage.begins()
    await tier.close()


def _some(count: int, start: int = 0) -> tuple[Block, ...]:
    return tuple(ROOTS[start:count])


SCENARIOS = [
    Scenario(
        "the first start",
        _nothing,
        _opening(4 * SEGMENT_BYTES),
        capacity_bytes=4 * SEGMENT_BYTES,
    ),
    Scenario("a start after a clean stop", _twelve_blocks, _opening(), _some(12)),
    Scenario("a start after a kill", _older_index, _opening(), _some(4)),
    Scenario("a start without an index", _no_index, _opening(), _some(12), problems=True),
    Scenario(
        "a start with more capacity",
        _twelve_blocks,
        _opening(CAPACITY_BYTES + 2 * SEGMENT_BYTES),
        _some(12),
        capacity_bytes=CAPACITY_BYTES + 2 * SEGMENT_BYTES,
    ),
    Scenario(
        "a start with less capacity",
        lambda path: _store(path, ROOTS[:24]),
        _opening(4 * SEGMENT_BYTES),
        _some(24),
        removed=_some(24, 20),
        problems=True,
        capacity_bytes=4 * SEGMENT_BYTES,
    ),
    Scenario("a store into a fresh tier", _nothing, _storing(NEW), added=tuple(NEW)),
    Scenario("a store behind others", _two_blocks, _storing(NEW[:2]), _some(2), tuple(NEW[:2])),
    Scenario("a store that seals", _four_blocks, _storing(NEW), _some(4), tuple(NEW)),
    Scenario("a store into a recycled segment", _recycled, _storing(NEW), _some(10, 5), tuple(NEW)),
    Scenario("a store under LZ4", _two_blocks, _storing(SOFT, "planes_lz4"), _some(2), tuple(SOFT)),
    Scenario("a store under zstd", _two_blocks, _storing(SOFT, "zstd"), _some(2), tuple(SOFT)),
    Scenario("a forget", _four_blocks, _forget, _some(4), removed=_some(2)),
    Scenario("a relog", _twelve_blocks, _relog, _some(12)),
    Scenario("a recycle", _forgotten, _recycle, _some(7, 5)),
    Scenario("pre-writing", _two_blocks, _prewrite, _some(2), tuple(NEW[:2]), direct=True),
    Scenario("a close", _two_blocks, _close, (*_some(2), *NEW)),
    Scenario("the first start with encryption", _nothing, _open_encrypted, encryption=ENCRYPTED),
    Scenario(
        "encryption over blocks in clear",
        _two_blocks,
        _store_encrypted_behind,
        _some(2),
        tuple(NEW[:2]),
        encryption=ENCRYPTED,
    ),
    Scenario(
        "a store behind encrypted ones",
        _two_encrypted,
        _store_encrypted_behind,
        _some(2),
        tuple(NEW[:2]),
        encryption=ENCRYPTED,
    ),
    Scenario(
        "another master key",
        _two_under_another,
        _take_another_master,
        _some(2),
        encryption=Encryption((MASTER, OLD_MASTER)),
    ),
    Scenario(
        "a start without an index, encrypted",
        _two_encrypted_without_an_index,
        _open_encrypted,
        _some(2),
        problems=True,
        encryption=ENCRYPTED,
    ),
    Scenario(
        "a shred",
        _two_encrypted,
        _shred,
        _some(2),
        removed=_some(2),
        encryption=ENCRYPTED,
    ),
]
