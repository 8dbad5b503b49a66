"""Many workers for many minutes, clients and service killed at random: what is left, what grew?

    python benchmarks/soak_cache.py [--seconds 600] [--processes 16] [--threads 4] [--json FILE]

Processes of several threads each store and restore chains of a shared pool, in turn over the
stream, shared memory and the bulk lane, some with next to no time; every restored byte is compared.
Meanwhile a process is killed (kill -9) every few seconds and another takes its place. In the first
half of the time the service is killed too, or stopped (SIGSTOP) for a second, and comes back over
its data. In the second half it lives, so that its memory can be seen to stay flat.

At the end the clients go, and the service must hold no session, lease or reservation, no slab
but those of cached blocks, and verify every block of its SSD. Exit status 1 when it does not, when
a byte was wrong, when nothing was restored, or when the service's own memory (resident, not shared)
grew by more than GROWTH_MAX in that second half. Memory goes up and down with Python's collections
of cycles, minutes apart, so what counts is how low it comes down; and what is bounded by a number
of entries (events, remembered answers) is full soon, because it is made small here.
"""

import argparse
import faulthandler
import hashlib
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from kvtier.blocks import MissReason
from kvtier.cli.channel import open_channel
from kvtier.cli.processes import ServiceProcess, start_service
from kvtier.keys import BlockHash, NamespaceId
from kvtier.v1 import cache_pb2 as pb
from kvtier.v1 import cache_pb2_grpc
from worker.cache_client import CacheClient
from worker.cache_session import TransportChoice

BLOCK_BYTES = 64 * 1024
BLOCK_TOKENS = 16
CHAINS = 300
CHAIN_BLOCKS_MAX = 48
"""Together about three times what memory and SSD hold."""
TRANSPORTS: tuple[TransportChoice, ...] = ("stream", "shared_memory", "bulk")
SETTINGS = {
    "host.capacity_bytes": "96MiB",
    "ssd.capacity_bytes": "256MiB",
    "ssd.segment_bytes": "16MiB",
    "limits.lease_ttl_seconds": 10,
    "limits.reservation_ttl_seconds": 10,
    "limits.session_ttl_seconds": 10,
    "limits.reservation_grace_seconds": 2,
    "events.retained": 4096,
}
CLIENT_KILL_SECONDS = 3.0
SERVICE_FAULT_SECONDS = 20.0
SAMPLE_SECONDS = 2.0
SETTLE_SECONDS_MAX = 90.0
GROWTH_MAX = 0.10
WRONG_BYTE_STATUS = 3


def chain_of(number: int) -> list[BlockHash]:
    """Chains share beginnings: every third goes on from another's first half."""
    root = number - number % 3
    half = CHAIN_BLOCKS_MAX // 2
    return [
        BlockHash(hashlib.sha256(b"%d/%d" % (root if i < half else number, i)).digest())
        for i in range(CHAIN_BLOCKS_MAX)
    ]


def page_of(block_hash: BlockHash) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    return np.frombuffer(block_hash * (BLOCK_BYTES // len(block_hash)), np.uint8)


# -- a client process -------------------------------------------------------------------------


def be_client(address: str, seed: int, threads: int) -> int:
    """Until SIGTERM; prints what it did as one JSON line."""
    logging.disable(logging.WARNING)  # that the service is away is what is wanted here
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # where it hung
    stop, wrong, counts = threading.Event(), threading.Event(), Counter[str]()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())

    def work(number: int) -> None:
        chance = random.Random(f"{seed}/{number}")
        transport = TRANSPORTS[number % len(TRANSPORTS)]
        client = CacheClient(
            address, NamespaceId(bytes(32)), BLOCK_BYTES, BLOCK_TOKENS, "soak", transport
        )
        pages = [np.zeros(BLOCK_BYTES, np.uint8) for _ in range(CHAIN_BLOCKS_MAX)]
        while not stop.is_set():
            chain = chain_of(min(int(chance.expovariate(1 / 60)), CHAINS - 1))
            chain = chain[: chance.randint(1, CHAIN_BLOCKS_MAX)]
            seconds = 0.002 if chance.random() < 0.05 else 2.0
            if chance.random() < 0.4:
                result = client.store("soak", chain, [page_of(each) for each in chain])
                counts["stored_blocks"] += result.stored_count
            else:
                restored = client.restore("soak", chain, pages, seconds)
                for block_hash, page, _ in zip(chain, pages, restored.tiers, strict=False):
                    if not np.array_equal(page, page_of(block_hash)):
                        counts["wrong_blocks"] += 1
                        wrong.set()
                        stop.set()
                counts["restored_blocks"] += len(restored.tiers)
                counts[f"ended_{MissReason(restored.miss_reason).name.lower()}"] += 1
            counts["calls"] += 1
        client.close()

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    # Not a join at once: a signal that comes just before a wait without end is not noticed in it.
    while not stop.wait(0.5):
        pass
    for worker in workers:
        worker.join()
    print(json.dumps(counts), flush=True)
    return WRONG_BYTE_STATUS if wrong.is_set() else 0


# -- who starts and kills ---------------------------------------------------------------------


@dataclass
class Soak:
    """One run. Owned by one thread."""

    directory: Path
    process_count: int
    thread_count: int
    chance: random.Random
    service: ServiceProcess | None = None
    clients: "list[subprocess.Popen[bytes]]" = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    samples: list[dict[str, float]] = field(default_factory=list)
    seeds: int = 0
    address: str = field(default_factory=lambda: f"127.0.0.1:{free_port()}")
    """The same after every restart."""

    def start_service(self) -> None:
        settings = {
            "listen": self.address,
            "data_directory": self.directory / "data",
            "socket_path": self.directory / "a",
            "bulk.listen": "127.0.0.1:0",
            "log.level": "WARNING",
            **SETTINGS,
        }
        self.service = start_service("cache_service", settings, self.directory / "log")
        self.counts["service_starts"] += 1

    def start_client(self) -> None:
        self.seeds += 1
        command = [sys.executable, __file__, "--client", self.address]
        command += ["--seed", str(self.seeds), "--threads", str(self.thread_count)]
        self.clients.append(subprocess.Popen(command, stdout=subprocess.PIPE))

    def kill_client(self) -> None:
        victim = self.clients.pop(self.chance.randrange(len(self.clients)))
        victim.kill()
        self._gather(victim)
        self.counts["client_kills"] += 1
        self.start_client()

    def harm_service(self) -> None:
        assert self.service is not None
        if self.counts["service_kills"] and self.chance.random() < 0.5:
            self.service.process.send_signal(signal.SIGSTOP)
            time.sleep(1.0)
            self.service.process.send_signal(signal.SIGCONT)
            self.counts["service_stops"] += 1
        else:
            self.service.kill()
            self.counts["service_kills"] += 1
            self.start_service()

    def sample(self, at: float) -> None:
        assert self.service is not None
        self.samples.append({"at": at, "private_bytes": private_bytes(self.service.process.pid)})

    def end_clients(self) -> None:
        for client in self.clients:
            client.send_signal(signal.SIGTERM)
        for client in self.clients:
            self._gather(client)
        self.clients.clear()

    def _gather(self, client: "subprocess.Popen[bytes]") -> None:
        try:
            said, _ = client.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            client.send_signal(signal.SIGUSR1)
            time.sleep(1.0)
            client.kill()
            said, _ = client.communicate()
            self.counts["clients_that_hung"] += 1
        for line in said.splitlines():
            self.counts.update(json.loads(line))
        # SIGTERM ends one that has only just been started, and has no handler yet.
        if client.returncode not in (0, -signal.SIGKILL, -signal.SIGTERM):
            self.counts["clients_that_failed"] += 1

    def close(self) -> None:
        for client in self.clients:
            client.kill()
            client.wait()
        if self.service is not None:
            self.service.stop()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def private_bytes(pid: int) -> float:
    """Resident memory that is the process's own: not the arena, not files."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return float(line.split()[1]) * 1024
    raise SystemExit("this system does not tell RssAnon")


def run(soak: Soak, seconds: float) -> None:
    """The load and the kills."""
    soak.start_service()
    for _ in range(soak.process_count):
        soak.start_client()
    began = time.monotonic()
    next_kill = next_harm = next_sample = 0.0
    while (now := time.monotonic() - began) < seconds:
        if now >= next_kill:
            soak.kill_client()
            next_kill = now + CLIENT_KILL_SECONDS * soak.chance.uniform(0.5, 1.5)
        if now >= next_harm and now < seconds / 2:
            soak.harm_service()
            gap = min(SERVICE_FAULT_SECONDS, seconds / 6)
            next_harm = time.monotonic() - began + gap * soak.chance.uniform(0.5, 1.5)
        if now >= next_sample:
            soak.sample(now)
            next_sample = now + SAMPLE_SECONDS
        time.sleep(0.1)
    soak.end_clients()


def left_over(address: str) -> dict[str, int]:
    """What the service holds when nobody is there any more, once it has come to rest."""
    with open_channel(address) as channel:
        stub = cache_pb2_grpc.CacheServiceStub(channel)
        deadline = time.monotonic() + SETTLE_SECONDS_MAX
        while True:
            stats = stub.GetStats(pb.GetStatsRequest(), timeout=10)
            used = sum(each.used_count for each in stats.host_memory.classes)
            held = {
                "sessions": stats.session_count,
                "leases": stats.lease_count,
                "reservations": stats.reservation_count,
                "pending_writes": stats.pending_write_count,
                "slabs_of_nobody": used - stats.tiers[0].block_count,
            }
            if not any(held.values()) or time.monotonic() > deadline:
                return held
            time.sleep(0.5)


def verified(address: str) -> dict[str, int]:
    """Every block of the SSD, read and checked."""
    with open_channel(address) as channel:
        stub = cache_pb2_grpc.CacheServiceStub(channel)
        *_, last = stub.VerifyBlocks(pb.VerifyBlocksRequest(), timeout=300)
        found = last.progress
        return {
            "checked_blocks": found.checked_count,
            "corrupt_blocks": found.corrupt_count,
            "unreadable_blocks": found.unreadable_count,
        }


def growth(samples: list[dict[str, float]], seconds: float) -> float | None:
    """Of the service's private memory in the second half: its lowest in the later part of that
    against its lowest in the earlier one, the first seconds left out. None when it was not looked
    at often enough, in a short run on a busy machine."""
    warm = [each for each in samples if each["at"] >= seconds * 0.55]
    middle = seconds * 0.775
    early = [each["private_bytes"] for each in warm if each["at"] < middle]
    late = [each["private_bytes"] for each in warm if each["at"] >= middle]
    return min(late) / min(early) - 1 if early and late else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--client", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        return be_client(options.client, options.seed, options.threads)
    with tempfile.TemporaryDirectory(prefix="kvs-") as name:
        soak = Soak(Path(name), options.processes, options.threads, random.Random(options.seed))
        try:
            run(soak, options.seconds)
            result: dict[str, Any] = {
                "workers": options.processes * options.threads,
                "seconds": options.seconds,
                "cpu_count": os.cpu_count(),
                "counts": dict(sorted(soak.counts.items())),
                "left_over": left_over(soak.address),
                "verified": verified(soak.address),
                "private_bytes": [round(each["private_bytes"]) for each in soak.samples],
                "growth_in_second_half": growth(soak.samples, options.seconds),
            }
        except grpc.RpcError as error:
            raise SystemExit(f"the service does not answer at the end: {error}") from error
        finally:
            soak.close()
    counts, grown = soak.counts, result["growth_in_second_half"]
    result["problems"] = [
        what
        for what, holds in {
            "a wrong byte": counts["wrong_blocks"],
            "a client failed or hung": counts["clients_that_failed"] + counts["clients_that_hung"],
            "something is held by nobody": any(result["left_over"].values()),
            "a block is corrupt": result["verified"]["corrupt_blocks"],
            "memory grew": grown is None or grown > GROWTH_MAX,
            "nothing was restored": not counts["restored_blocks"],
            "nobody was killed": not counts["client_kills"],
        }.items()
        if holds
    ]
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    for key, value in result.items():
        if key != "private_bytes":
            print(f"{key}: {value}")
    return 1 if result["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
