"""A real master of Mooncake Store as a process. Without the package its tests are skipped."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["Master", "mooncake_master"]

READY_SECONDS_MAX = 30


class Master:
    """`pause` and `go_on`: to its clients a partition of the network."""

    def __init__(self, address: str, process: "subprocess.Popen[bytes]") -> None:
        self.address = address
        self._process = process

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)


@contextmanager
def mooncake_master() -> Iterator[Master]:
    pytest.importorskip(
        "mooncake.store",
        reason="Mooncake is NOT TESTED here: pip install 'kvtier[mooncake]' to have it tested",
        exc_type=ImportError,
    )
    port, metrics_port = _free_port(), _free_port()
    program = Path(sys.executable).with_name("mooncake_master")
    process = subprocess.Popen(
        [str(program), f"--rpc_port={port}", f"--metrics_port={metrics_port}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _await(port)
        yield Master(f"127.0.0.1:{port}", process)
    finally:
        process.kill()
        process.wait()


def _await(port: int) -> None:
    deadline = time.monotonic() + READY_SECONDS_MAX
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert time.monotonic() < deadline, "the master does not listen"
            time.sleep(0.05)
        else:
            return


def _free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port
