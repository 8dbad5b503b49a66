"""A process whose children do one scenario each and are killed at a named step of it.

    python -m tests.ssd.killed

One JSON object a line on standard input: scenario, directory, kill_at (a step's number from 1, or
null to run through), torn (the write of that step is done by half before the kill). One a line on
standard output: steps (names, in order, until the end) and acknowledged. Children are forked,
because starting Python for every step would take longer than all the rest.

A step is one call to the file system by the tier that changes something, or one by its index:
"pwritev 000001.seg", "index write", "index flush".
"""

import asyncio
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import rocksdict

from storage.env import Buffer
from storage.ssd import index
from storage.tier import PAGE_BYTES
from tests.ssd.faulty_env import FaultyEnv
from tests.ssd.scenarios import SCENARIOS, Scenario, Stage


class Steps:
    """Counts steps once armed, tells each, and ends the process at one of them."""

    def __init__(self, kill_at: int | None, torn: bool, out: int) -> None:
        self._kill_at = kill_at
        self._torn = torn
        self._out = out
        self._armed = False
        self._count = 0
        self._lock = threading.Lock()

    def arm(self) -> None:
        self._armed = True

    def tell(self, line: str) -> None:
        os.write(self._out, f"{line}\n".encode())

    def step(self, name: str, *, can_tear: bool = False) -> bool:
        """Called before each; True: do half of it, then call `die`."""
        with self._lock:
            if not self._armed:
                return False
            self._count += 1
            self.tell(name)
            if self._count != self._kill_at:
                return False
            if self._torn and can_tear:
                return True
            return die()


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("survived")


class KillingEnv(FaultyEnv):
    """A machine that counts what changes it."""

    def __init__(self, steps: Steps, *, refuse_direct: bool) -> None:
        super().__init__(refuse_direct=refuse_direct)
        self._steps = steps
        self._names: dict[int, str] = {}

    def open(self, path: Path, flags: int) -> int:
        if flags & os.O_CREAT:
            self._steps.step(f"create {path.name}")
        fd = super().open(path, flags)
        self._names[fd] = path.name
        return fd

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        if self._steps.step(f"pwritev {self._names[fd]}", can_tear=True):
            super().pwritev(fd, first_half(buffers), offset)
            die()
        return super().pwritev(fd, buffers, offset)

    def fdatasync(self, fd: int) -> None:
        self._steps.step(f"fdatasync {self._names[fd]}")
        super().fdatasync(fd)

    def fallocate(self, fd: int, size_bytes: int) -> None:
        self._steps.step(f"fallocate {self._names[fd]}")
        super().fallocate(fd, size_bytes)

    def rename(self, source: Path, target: Path) -> None:
        self._steps.step(f"rename {target.name}")
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self._steps.step(f"unlink {path.name}")
        super().unlink(path)

    def remove_tree(self, path: Path) -> None:
        self._steps.step(f"remove {path.name}")
        super().remove_tree(path)

    def mkdir(self, path: Path) -> None:
        self._steps.step(f"mkdir {path.name}")
        super().mkdir(path)

    def fsync_directory(self, path: Path) -> None:
        self._steps.step(f"fsync {path.name}")
        super().fsync_directory(path)


def first_half(buffers: Sequence[Buffer]) -> list[Buffer]:
    """The first half of the pages."""
    left = sum(b.nbytes for b in buffers) // PAGE_BYTES // 2 * PAGE_BYTES
    half = []
    for buffer in buffers:
        half.append(buffer[:left])
        left -= half[-1].nbytes
    return [b for b in half if b.nbytes]


def killing_index(steps: Steps) -> Callable[..., Any]:
    """RocksDB, which is not behind the environment, with the same steps."""
    genuine = rocksdict.Rdict

    class KillingRdict:
        def __init__(self, *args: Any, **options: Any) -> None:
            self._db = genuine(*args, **options)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._db, name)

        def write(self, batch: Any) -> None:
            steps.step("index write")
            self._db.write(batch)

        def flush_wal(self, sync: bool) -> None:
            steps.step("index flush")
            self._db.flush_wal(sync)

        def close(self) -> None:
            steps.step("index close")
            self._db.close()

    return KillingRdict


def live(scenario: Scenario, order: dict[str, Any], out: int) -> None:
    """The child's life."""
    steps = Steps(order["kill_at"], order["torn"], out)
    index.rocksdict.Rdict = killing_index(steps)  # type: ignore[misc,assignment]
    env = KillingEnv(steps, refuse_direct=not scenario.direct)
    asyncio.run(scenario.act(Path(order["directory"]), Stage(env, steps.arm)))
    steps.tell("acknowledged")
    die()


def main() -> None:
    scenarios = {scenario.name: scenario for scenario in SCENARIOS}
    for line in sys.stdin:
        order = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            try:
                live(scenarios[order["scenario"]], order, writing)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        os.close(writing)
        with os.fdopen(reading) as told:
            lines = told.read().splitlines()
        _, status = os.waitpid(child, 0)
        answer = {
            "steps": [each for each in lines if each != "acknowledged"],
            "acknowledged": "acknowledged" in lines,
            "killed": os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL,
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
