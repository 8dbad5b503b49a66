"""A real S3 server that is silent, refuses its keys, or has no such bucket."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest

from storage.errors import TierIOError
from storage.shared.levels import Extent
from storage.shared.object_store import open_object_store
from storage.shared.tier import SharedLimits, SharedTier
from tests.shared.chains import get, names, put, put_turns, view
from tests.shared.swift import S3Server, swift_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with swift_server(tmp_path_factory.mktemp("swift")) as started:
        yield started


def opened(server: S3Server, limits: SharedLimits, url: str = "") -> SharedTier:
    options = {"endpoint": server.endpoint, "region": "us-east-1"}
    return SharedTier(open_object_store(url or server.url, options), limits)


@pytest.fixture(autouse=True)
def keys(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)


async def test_a_silent_server_costs_deadlines_and_then_serves_again(server: S3Server) -> None:
    patient = opened(server, SharedLimits(60, 60))
    chain = names(20, "silent")
    await put_turns(patient, chain, [20])
    hasty = opened(server, SharedLimits(0.2, 0.3))
    calls: tuple[Callable[[], Awaitable[object]], ...] = (
        lambda: hasty.find(view(chain), 0),
        lambda: hasty.read(view(chain), Extent(0, 16), {}),
        lambda: put(hasty, names(4, "new"), Extent(0, 4)),
    )
    server.pause()
    try:
        async with asyncio.timeout(30):
            for _ in range(3):
                for call in calls:
                    with pytest.raises(TierIOError, match="did not answer"):
                        await call()
    finally:
        server.go_on()
    assert await get(patient, chain, await patient.find(view(chain), 0)) == 20
    await hasty.close()
    await patient.close()


async def test_two_hosts_that_write_the_same_at_once_both_write_it(server: S3Server) -> None:
    tiers = [opened(server, SharedLimits(60, 60)) for _ in range(3)]
    for number in range(8):
        chain = names(20, f"both {number}")
        await asyncio.gather(*(put_turns(each, chain, [20]) for each in tiers))
        assert await get(tiers[0], chain, await tiers[0].find(view(chain), 0)) == 20
    for each in tiers:
        await each.close()


async def test_keys_that_it_refuses_are_an_error_in_one_line(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    tier, chain = opened(server, SharedLimits(60, 60)), names(4, "keys")
    calls: tuple[Callable[[], Awaitable[object]], ...] = (
        lambda: tier.find(view(chain), 0),
        lambda: tier.read(view(chain), Extent(0, 4), {}),
        lambda: put(tier, chain, Extent(0, 4)),
    )
    for call in calls:
        with pytest.raises(TierIOError, match="lacked the necessary privileges") as caught:
            await call()
        assert "\n" not in str(caught.value)
    await tier.close()


async def test_a_bucket_that_is_not_there_refuses_writes(server: S3Server) -> None:
    tier = opened(server, SharedLimits(60, 60), "s3://nothing/kv")
    chain = names(4, "bucket")
    assert await tier.find(view(chain), 0) == []
    with pytest.raises(TierIOError, match="not found"):
        await put(tier, chain, Extent(0, 4))
    await tier.close()
