"""Encrypted stores: keys, and what every test of them asks."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from storage.ssd.key_ring import Encryption
from storage.ssd.tier import SsdTier
from storage.tier import SsdLocation
from tests.ssd.blocks import Block, read

MASTER, OTHER_MASTER = bytes(range(32)), bytes(range(1, 33))
ON = Encryption((MASTER,))
Open = Callable[..., SsdTier]


async def store(tier: SsdTier, blocks: Sequence[Block], owner: str = "acme") -> list[SsdLocation]:
    batch = [(b.record, b.view()) for b in blocks]
    return await tier.append(batch, (), [owner] * len(batch))


async def holds(tier: SsdTier, blocks: Sequence[Block]) -> None:
    """Exactly these blocks, all right."""
    found = dict(tier.recovered())
    assert set(found) == {b.record for b in blocks}
    for b in blocks:
        assert await read(tier, b.record, found[b.record]) == b.payload


def every_byte(directory: Path) -> bytes:
    return b"".join(f.read_bytes() for f in sorted(directory.rglob("*")) if f.is_file())


def lose_index(directory: Path) -> None:
    shutil.rmtree(directory / "index")
