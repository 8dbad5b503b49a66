"""Every engine that the shared tier can have, each with the same promises."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from storage.shared.mooncake_store import MooncakeOptions, open_mooncake_store
from storage.shared.object_store import open_object_store
from storage.shared.objects import ObjectStore
from storage.shared.sealing import Sealing
from storage.shared.tier import SharedLimits, SharedTier
from tests.shared.mooncake import mooncake_master
from tests.shared.swift import S3Server, swift_server

LIMITS = SharedLimits(find_seconds=30, request_seconds=30)


@pytest.fixture(scope="session")
def mooncake() -> Iterator[str]:
    """The address of a master of Mooncake, with a pool that stays while clients come and go."""
    with mooncake_master() as master:
        from mooncake.store import MooncakeDistributedStore

        donor = MooncakeDistributedStore()
        sizes = 256 << 20, 16 << 20
        peers = "tcp", "", master.address
        assert donor.setup("127.0.0.1", "P2PHANDSHAKE", *sizes, *peers) == 0
        yield master.address
        donor.close()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with swift_server(tmp_path_factory.mktemp("swift")) as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture(params=["directory", "s3", "mooncake"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ObjectStore]:
    opened: ObjectStore
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("s3")
        options = {"endpoint": server.endpoint, "region": "us-east-1"}
        opened = open_object_store(server.url, options)
    elif request.param == "mooncake":
        url = f"mooncake://{request.getfixturevalue('mooncake')}"
        opened = open_mooncake_store(url, MooncakeOptions(0, "tcp", "127.0.0.1"))
    else:
        opened = open_object_store(f"file://{tmp_path}/shared", {})
    # A server serves all tests of a session.
    await opened.delete_below("kvtier/")
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
