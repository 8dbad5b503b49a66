"""kill -9 at every step of everything the SSD tier does; see tests/ssd/scenarios.py.

After each: the store opens, capacity is exact, what was committed is there and right, nothing else
is, and the store goes on storing.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ssd.scenarios import SCENARIOS, Scenario
from tests.ssd.wreck import check_wreck

ROOT = Path(__file__).parents[2]

STEPS = {
    "a store behind others": [
        "index write",
        "pwritev 000000.seg",
        "fdatasync 000000.seg",
        "index write",
        "index flush",
    ],
    "a store that seals": [
        "index write",
        "pwritev 000000.seg",
        "fdatasync 000000.seg",
        "pwritev 000001.seg",
        "pwritev 000001.seg",
        "fdatasync 000001.seg",
        "index write",
        "index flush",
    ],
    "a forget": ["index write", "index flush"],
    "a recycle": [
        "index write",
        "pwritev 000000.seg",
        "fdatasync 000000.seg",
        "index write",
        "index flush",
    ],
}
"""What the format document says about the order of durable steps."""


class Killer:
    """The process whose children are killed."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.ssd.killed"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"},
        )

    def run(self, scenario: Scenario, directory: Path, kill_at: int | None, torn: bool) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = {"scenario": scenario.name, "directory": str(directory)}
        self._process.stdin.write(json.dumps(order | {"kill_at": kill_at, "torn": torn}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert answer["killed"], "the child ended by itself"
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait(30) == 0


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    killer = Killer()
    yield killer
    killer.close()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
async def test_a_kill_at_any_step_loses_nothing_committed(
    memory_path: Path, killer: Killer, scenario: Scenario
) -> None:
    prepared = memory_path / "prepared"
    await scenario.prepare(prepared)

    async def killed(kill_at: int | None, torn: bool = False) -> Any:
        path = memory_path / "ssd"
        if prepared.exists():
            shutil.copytree(prepared, path)
        answer = killer.run(scenario, path, kill_at, torn)
        await check_wreck(path, scenario, answer["acknowledged"])
        shutil.rmtree(path)
        return answer

    whole = await killed(None)
    steps = whole["steps"]
    assert whole["acknowledged"]
    assert steps or scenario.direct
    assert steps == STEPS.get(scenario.name, steps)
    for number, name in enumerate(steps, 1):
        answer = await killed(number)
        assert not answer["acknowledged"]
        assert answer["steps"] == steps[:number], "a scenario is the same every time"
        if name.startswith("pwritev"):
            await killed(number, torn=True)
