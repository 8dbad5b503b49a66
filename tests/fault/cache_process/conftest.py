"""A cache service as a process of its own, to be killed, stopped and started again."""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvtier.breaker import Breaker
from kvtier.keys import BlockHash, NamespaceId
from tests.page_kinds import ListClient

BLOCK_BYTES = 256 * 1024


class Process:
    """`python -m cache_service` with its output; ended by the fixture if not before."""

    def __init__(self, directory: Path, *settings: str) -> None:
        self.directory = directory
        flags = [
            "listen=127.0.0.1:0",
            "security.development=true",
            f"data_directory={directory}",
            "host.capacity_bytes=64MiB",
            "ssd.capacity_bytes=128MiB",
            "ssd.segment_bytes=16MiB",
            *settings,
        ]
        command = [sys.executable, "-m", "cache_service"]
        command += [part for flag in flags for part in ("--set", flag)]
        self.popen = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def ready(self) -> str:
        """Waits for the ready line; the address."""
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        assert line, self.popen.communicate()[1].decode()
        self.said = json.loads(line)
        return str(self.said["listen"])

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def end(self) -> tuple[int, str, str]:
        """Exit status, standard output after the ready line, standard error."""
        out, err = self.popen.communicate(timeout=30)
        return self.popen.returncode, out.decode(), err.decode()


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="kvt-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def start(directory: Path) -> Iterator[Callable[..., Process]]:
    processes: list[Process] = []

    def make(*settings: str, where: Path | None = None) -> Process:
        processes.append(Process(where or directory, *settings))
        return processes[-1]

    yield make
    for process in processes:
        if process.popen.poll() is None:
            process.popen.kill()
        process.popen.communicate(timeout=30)


@pytest.fixture
def connect() -> Iterator[Callable[..., ListClient]]:
    clients: list[ListClient] = []

    def make(address: str, breaker: Breaker | None = None) -> ListClient:
        namespace = NamespaceId(bytes(range(32)))
        clients.append(
            ListClient(
                address, namespace, BLOCK_BYTES, 64, "test", store_seconds_max=2.0, breaker=breaker
            )
        )
        return clients[-1]

    yield make
    for client in clients:
        client.close()


class Payloads:
    """Chains whose payloads follow from their hashes."""

    block_bytes = BLOCK_BYTES

    def chain(self, number: int, count: int) -> list[BlockHash]:
        return [BlockHash(number.to_bytes(16, "big") + i.to_bytes(16, "big")) for i in range(count)]

    def pages(self, chain: list[BlockHash]) -> list[Any]:
        return [
            np.random.default_rng(list(block_hash)).integers(0, 256, BLOCK_BYTES, dtype=np.uint8)
            for block_hash in chain
        ]

    def blank(self, count: int) -> list[Any]:
        return [np.zeros(BLOCK_BYTES, dtype=np.uint8) for _ in range(count)]


@pytest.fixture
def payloads() -> Payloads:
    return Payloads()
