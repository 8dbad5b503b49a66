"""Every engine that the shared tier can have, each with the same promises."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from storage.shared.object_store import open_object_store
from storage.shared.objects import ObjectStore
from storage.shared.sealing import Sealing
from storage.shared.tier import SharedLimits, SharedTier

LIMITS = SharedLimits(find_seconds=30, request_seconds=30)


@pytest.fixture(params=["directory"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ObjectStore]:
    opened = open_object_store(f"file://{tmp_path}/shared", {})
    yield opened
    await opened.close()


@pytest.fixture(params=["clear", "sealed"])
def sealing(request: pytest.FixtureRequest) -> Sealing | None:
    return Sealing([bytes(range(32))]) if request.param == "sealed" else None


@pytest.fixture
async def tier(store: ObjectStore, sealing: Sealing | None) -> AsyncIterator[SharedTier]:
    opened = SharedTier(store, LIMITS, sealing)
    yield opened
    await opened.close()
