"""Is the ledger what clients were told, to the token, whatever is killed between any two steps?

A worker's journal and delivery, a billing service and, if asked for, a PostgreSQL run as processes
of their own; each is killed with -9 again and again at random moments and started anew, while
clients are told what they used and old events are sent again, out of order, by somebody else. Then
everything is delivered and the ledger is compared.

    python -m tests.soak.usage_kills [--events 1000000] [--backend sqlite|postgres] [--seed N]
                                     [--kills-apart SECONDS]

Ends with one JSON object: what was told, killed and found. Exit status 1 where they differ.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc
from sqlalchemy import Connection, select

from billing.checkpoint_check import Trust
from billing.entry import EntryHash
from billing.ledger_postgres import PostgresStore
from billing.ledger_schema import entries
from billing.ledger_sqlite import SqliteStore
from billing.ledger_store import LedgerStore
from billing.ledger_verify import verify_ledger
from billing.meter import Head
from billing.usage import EndReason, event_from_text
from billing.wire import submission_of
from billing.wire_proof import kept_of
from kvtier.v1 import usage_pb2, usage_pb2_grpc
from tests.postgres import PostgresServer
from tests.soak.usage_worker import event_of, request_id_of
from worker.usage_wire import event_message

__all__ = ["Outcome", "soak"]

CLIENTS = 48
RESENT_AT_ONCE = 200
STARTS_MAX = 60


@dataclass
class Outcome:
    """What was told, and what the ledger says."""

    backend: str
    told: int
    begun: int
    killed: dict[str, int]
    resent: int
    entries: int = 0
    lost_by_workers: int = 0
    """Requests whose worker was killed before their end: nothing charged."""
    missing: int = 0
    """Told, and not in the ledger."""
    different: int = 0
    """In the ledger with other tokens than were told."""
    invented: int = 0
    """In the ledger, and never begun."""
    conflicts: int = 0
    problem: str = ""
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        wrong = self.missing + self.different + self.invented + self.conflicts
        return not wrong and not self.problem and self.entries >= self.told


class _Worker:
    """The worker's process, and what it said before it was killed."""

    def __init__(self, directory: Path, billing: str) -> None:
        self._command = [sys.executable, "-m", "tests.soak.usage_worker", str(directory), billing]
        self.begun: set[int] = set()
        self.told: set[int] = set()
        self._first = 0
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [*self._command, str(self._first), str(CLIENTS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._last = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        _close_pipes(self._process)
        self._first = max(self.begun, default=-1) + CLIENTS + 1

    def finish(self) -> str:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._reader.join()
        return self._last

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if not line.endswith("\n"):
                return
            word, _, number = line.strip().partition(" ")
            if word == "S":
                self.begun.add(int(number))
            elif word == "T":
                self.told.add(int(number))
            else:
                self._last = line.strip()


class _Billing:
    """The billing service's process, at one address."""

    def __init__(self, directory: Path, url: str) -> None:
        self.address = "127.0.0.1:0"
        self._settings = [f"data_directory={directory}", "security.development=true"]
        self._settings += ["log.level=ERROR", "checkpoints.entries=1000"]
        self._settings += [f"database_url={url}"] if url else []
        self.start()

    def start(self) -> None:
        for _ in range(STARTS_MAX):
            words = [w for s in (*self._settings, f"listen={self.address}") for w in ("--set", s)]
            self._process = subprocess.Popen(
                [sys.executable, "-m", "billing", *words],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            assert self._process.stdout is not None
            line = self._process.stdout.readline()
            if line:
                self.address = json.loads(line)["listen"]
                return
            self.stop()  # its database, or its port, is not there yet
            _close_pipes(self._process)
        raise RuntimeError(f"billing does not start: {self._settings}")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        _close_pipes(self._process)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


def _close_pipes(process: subprocess.Popen[str]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def soak(
    events: int, backend: str, directory: Path, *, seed: int = 1, kills_apart: float = 0.6
) -> Outcome:
    """Runs until so many events were told, each part was killed and some events were sent again,
    then compares."""
    chance, began = random.Random(seed), time.monotonic()
    with ExitStack() as parts:
        server, url = None, ""
        if backend == "postgres":
            server = PostgresServer()
            parts.callback(server.stop)
            url = server.new_database()
        billing = _Billing(directory / "billing", url)
        parts.callback(billing.kill)
        worker = _Worker(directory / "journal", billing.address)
        parts.callback(worker.kill)
        killed, resent = Counter[str](), 0
        victims = ["worker", "billing", *(["database"] if server is not None else [])]
        while len(worker.told) < events or len(killed) < len(victims) or not resent:
            time.sleep(chance.uniform(0, 2 * kills_apart))
            resent += _send_again(billing.address, worker, chance)
            victim = chance.choice(victims)
            killed[victim] += 1
            if victim == "worker":
                worker.kill()
                worker.start()
            elif victim == "billing":
                billing.kill()
                time.sleep(chance.uniform(0, kills_apart / 2))
                billing.start()
            elif server is not None:
                server.kill()
                time.sleep(chance.uniform(0, kills_apart / 2))
                server.start()
        outcome = Outcome(backend, 0, 0, dict(killed), resent)
        said = worker.finish()
        outcome.told, outcome.begun = len(worker.told), len(worker.begun)
        with grpc.insecure_channel(billing.address) as channel:
            stub = usage_pb2_grpc.UsageServiceStub(channel)
            answer = stub.GetCheckpoint(usage_pb2.GetCheckpointRequest(), timeout=60)
        billing.stop()
        store: LedgerStore = PostgresStore(url) if url else SqliteStore(directory / "billing")
        parts.callback(store.close)
        kept = kept_of(answer.checkpoint)
        store.read(lambda connection: _compare(connection, worker, outcome))
        found = store.read(
            lambda connection: verify_ledger(connection, NOTHING, trust=Trust((kept,)))
        )
        outcome.problem = found.problem or ("" if said == "DONE" else said)
        outcome.conflicts = found.refused_count
    outcome.seconds = round(time.monotonic() - began, 1)
    return outcome


NOTHING = Head(0, EntryHash(b""))
"""For a walk that knows of no commit but the checkpoint's."""


def _send_again(address: str, worker: _Worker, chance: random.Random) -> int:
    """Old events once more, in another order; some of them may not have arrived yet."""
    told = list(worker.told)
    if not told:
        return 0
    numbers = [chance.choice(told) for _ in range(RESENT_AT_ONCE)]
    request = usage_pb2.RecordUsageRequest(events=[event_message(event_of(n)) for n in numbers])
    with grpc.insecure_channel(address) as channel:
        try:
            usage_pb2_grpc.UsageServiceStub(channel).RecordUsage(request, timeout=10)
        except grpc.RpcError:
            return 0
    return len(numbers)


def _compare(connection: Connection, worker: _Worker, outcome: Outcome) -> None:
    by_id = {request_id_of(number): number for number in worker.told}
    query = select(entries.c.event).execution_options(yield_per=10_000)
    for (text,) in connection.execute(query):
        found = event_from_text(text)
        outcome.entries += 1
        number = by_id.pop(found.request_id, None)
        if number is not None:
            said = submission_of(event_message(event_of(number))).event
            outcome.different += said != found
            continue
        begun = int(found.request_id.rpartition("-")[2])
        if found.end_reason is EndReason.WORKER_LOST:
            outcome.lost_by_workers += 1
            outcome.different += found.tokens.prompt + found.tokens.output > 0
        else:
            # Durable, and its worker killed before the client could be told: as it would have been.
            outcome.different += submission_of(event_message(event_of(begun))).event != found
        outcome.invented += begun > max(worker.begun) + CLIENTS
    outcome.missing = len(by_id)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--backend", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills-apart", type=float, default=2.0, help="seconds, about")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        outcome = soak(
            arguments.events,
            arguments.backend,
            Path(directory),
            seed=arguments.seed,
            kills_apart=arguments.kills_apart,
        )
    print(json.dumps({**asdict(outcome), "holds": outcome.holds}))
    return 0 if outcome.holds else 1


if __name__ == "__main__":
    sys.exit(main())
