"""The Nth call that the disk refuses, of every kind, in everything the SSD tier does.

After each: the error is typed, capacity is exact, what was committed is there and right, nothing
else is, and the store opens and goes on storing. The index has no environment to fail in; it is
refused in the same way one level down.
"""

import errno
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rocksdict

from storage.errors import DataDirectoryError, TierIOError
from storage.ssd import index
from tests.ssd.blocks import append, block, read
from tests.ssd.faulty_env import FaultyEnv
from tests.ssd.scenarios import SCENARIOS, Scenario, Stage
from tests.ssd.wreck import check_wreck

CALLS = ["open", "pwritev", "fdatasync", "fallocate", "rename", "unlink", "mkdir"]
CODES = [errno.EIO, errno.ENOSPC]


async def broken(scenario: Scenario, path: Path, env: FaultyEnv, arm: Callable[[], None]) -> bool:
    """Acts until the machine refuses; True when it did not mind."""
    stage = Stage(env, arm)
    try:
        await scenario.act(path, stage)
    except (TierIOError, DataDirectoryError):
        return False
    finally:
        await stage.close()
    return True


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
async def test_the_nth_call_that_fails_costs_nothing_committed(
    memory_path: Path, scenario: Scenario
) -> None:
    prepared = memory_path / "prepared"
    await scenario.prepare(prepared)
    codes = itertools.cycle(CODES)
    for call in CALLS:
        for nth in itertools.count(1):
            path = memory_path / "ssd"
            if prepared.exists():
                shutil.copytree(prepared, path)
            env = FaultyEnv(refuse_direct=not scenario.direct)
            code = next(codes)
            whole = await broken(
                scenario, path, env, lambda e=env, c=call, d=code, n=nth: e.fail(c, d, n)
            )
            await check_wreck(path, scenario, acknowledged=whole)
            shutil.rmtree(path)
            if env.failure_ahead:
                break


class RefusingIndex:
    """RocksDB that refuses one call, the nth of its kind."""

    def __init__(self, call: str, nth: int) -> None:
        self.call, self.left = call, nth
        self._genuine = rocksdict.Rdict
        self.armed = False

    def arm(self) -> None:
        self.armed = True

    def __call__(self, *args: Any, **options: Any) -> Any:
        refusing, db = self, self._genuine(*args, **options)

        class Proxy:
            def __getattr__(self, name: str) -> Any:
                if name == refusing.call and refusing.armed:
                    refusing.left -= 1
                    if refusing.left == 0:
                        raise Exception("IO error: No space left on device")  # as the binding does
                return getattr(db, name)

        return Proxy()


CHANGING = ["a store behind others", "a store that seals", "a forget", "a relog", "a recycle"]
CHANGES = [scenario for scenario in SCENARIOS if scenario.name in CHANGING]


@pytest.mark.parametrize("call", ["write", "flush_wal"])
@pytest.mark.parametrize("scenario", CHANGES, ids=lambda s: s.name)
async def test_an_index_that_refuses_stops_changes_until_the_next_start(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch, scenario: Scenario, call: str
) -> None:
    path = memory_path / "ssd"
    await scenario.prepare(path)
    refusing = RefusingIndex(call, 1)
    with monkeypatch.context() as patched:
        patched.setattr(index.rocksdict, "Rdict", refusing)
        stage = Stage(FaultyEnv(refuse_direct=True), refusing.arm)
        tier = stage.open(path)
        places = dict(tier.recovered())
        await tier.close()
        with pytest.raises(TierIOError, match="No space left"):
            await scenario.act(path, stage)
        tier = stage.last
        with pytest.raises(TierIOError, match="only reads until it is opened again"):
            await append(tier, [block("later")])
        for b in set(scenario.before) - set(scenario.removed):
            assert await read(tier, b.record, places[b.record]) == b.payload
        await stage.close()
    await check_wreck(path, scenario, acknowledged=False)
