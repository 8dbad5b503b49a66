"""The part all drivers share: turns by lines on standard input, answers by lines of JSON.

    argv: block_bytes block_count single_blocks transport directory
    out:  {"ready": version}  or  {"absent": why}
    in:   a turn's number     out: {"store_seconds", "restore_seconds", "single_seconds"}

Ends when standard input does. Standard output is for answers alone: what a peer's library prints
there goes to standard error. Runs under another interpreter: NumPy and the standard library only.
One thread.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Absent", "Page", "Peer", "Terms", "await_port", "free_port", "serve", "start_server"]

Page = NDArray[np.uint8]

_START_SECONDS_MAX = 30.0


class Absent(Exception):
    """The peer is not installed or does not start; the message says which and what to do."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What is measured."""

    block_bytes: int
    block_count: int
    single_blocks: int
    transport: str
    directory: Path
    """For logs and sockets."""


class Peer(Protocol):
    """One connected peer. Its verbs raise when something was not moved."""

    version: str

    def pages(self) -> Page:
        """Memory for all blocks, from wherever the peer moves it fastest."""
        ...

    def store(self, keys: Sequence[str], pages: Sequence[Page]) -> None: ...

    def restore(self, keys: Sequence[str], pages: Sequence[Page]) -> None: ...

    def forget(self, keys: Sequence[str]) -> None:
        """Makes room; not timed."""
        ...


def serve(connect: Callable[[Terms, ExitStack], Peer]) -> None:
    """The driver's main. What `connect` puts on the stack is undone at the end."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    block_bytes, block_count, single_blocks, transport, directory = sys.argv[1:]
    terms = Terms(
        int(block_bytes), int(block_count), int(single_blocks), transport, Path(directory)
    )
    with ExitStack() as stack:
        try:
            peer = connect(terms, stack)
        except (Absent, ImportError, OSError) as error:
            print(json.dumps({"absent": str(error)}), file=answers)
            return
        source, target = peer.pages(), peer.pages()
        source[:] = np.random.default_rng(7).integers(0, 256, len(source), dtype=np.uint8)
        print(json.dumps({"ready": peer.version}), file=answers)
        for line in sys.stdin:
            print(json.dumps(_turn(peer, terms, int(line), source, target)), file=answers)


def _turn(peer: Peer, terms: Terms, number: int, source: Page, target: Page) -> dict[str, Any]:
    size = terms.block_bytes
    sources, targets = (
        [data[i * size : (i + 1) * size] for i in range(terms.block_count)]
        for data in (source, target)
    )
    keys = _keys(terms, number)
    target[:] = 0
    began = time.perf_counter()
    peer.store(keys, sources)
    stored = time.perf_counter()
    target[:] = 0
    loading = time.perf_counter()
    peer.restore(keys, targets)
    restored = time.perf_counter()
    if not np.array_equal(source, target):
        raise SystemExit("a restored byte differs")
    singles = []
    for i in range(terms.single_blocks):
        at = i * 7 % terms.block_count
        one = time.perf_counter()
        peer.restore(keys[at : at + 1], targets[at : at + 1])
        singles.append(time.perf_counter() - one)
    peer.forget(_keys(terms, number - 1))
    return {
        "store_seconds": stored - began,
        "restore_seconds": restored - loading,
        "single_seconds": singles,
    }


def _keys(terms: Terms, number: int) -> list[str]:
    return [f"{number}-{i}" for i in range(terms.block_count)]


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def start_server(terms: Terms, stack: ExitStack, command: Sequence[str]) -> None:
    """Starts a server that ends with the driver. Raises OSError."""
    log = stack.enter_context((terms.directory / f"{Path(command[0]).name}.log").open("wb"))
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=terms.directory
    )

    def stop() -> None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    stack.callback(stop)


def await_port(port: int) -> None:
    """Returns when somebody listens there. Raises Absent."""
    deadline = time.monotonic() + _START_SECONDS_MAX
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
        except OSError:
            if time.monotonic() > deadline:
                raise Absent(
                    f"its server does not listen after {_START_SECONDS_MAX:.0f} s"
                ) from None
            time.sleep(0.05)
        else:
            return
