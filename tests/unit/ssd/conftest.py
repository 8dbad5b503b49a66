"""An SSD tier of six small segments, opened again as often as a test likes."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from storage.ssd.key_ring import Encryption
from storage.ssd.tier import SsdTier
from tests.ssd.blocks import CAPACITY_BYTES, SEGMENT_BYTES
from tests.ssd.encrypted import ON
from tests.ssd.faulty_env import FaultyEnv
from tests.ssd.scenarios import opened

Open = Callable[..., SsdTier]


@pytest.fixture
def env() -> FaultyEnv:
    return FaultyEnv()


@pytest.fixture
async def open_tier(tmp_path: Path, env: FaultyEnv) -> AsyncIterator[Open]:
    """Opens the tier in tmp_path/"ssd"; all are closed at the end."""
    opened: list[SsdTier] = []

    def open_one(capacity_bytes: int = CAPACITY_BYTES, path: Path | None = None) -> SsdTier:
        tier = SsdTier.open(
            path or tmp_path / "ssd",
            capacity_bytes=capacity_bytes,
            segment_bytes=SEGMENT_BYTES,
            env=env,
        )
        opened.append(tier)
        return tier

    yield open_one
    for tier in opened:
        await tier.close()


@pytest.fixture
async def ssd(tmp_path: Path) -> AsyncIterator[Open]:
    """Opens the tier in tmp_path/"ssd", encrypted unless told otherwise."""
    tiers: list[SsdTier] = []

    def open_one(encryption: Encryption = ON, codec: str = "none", env: Any = None) -> SsdTier:
        tiers.append(opened(tmp_path / "ssd", env, CAPACITY_BYTES, codec, encryption))
        return tiers[-1]

    yield open_one
    for tier in tiers:
        await tier.close()
