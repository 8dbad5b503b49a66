"""How long does a request take with a broken cache service, beside computing it without one?

    python benchmarks/bench_broken_cache.py [--context 1024] [--rounds 3] [--deadline 1.0]
        [--faults killed,hung] [--seed 1] [--json FILE]

A worker's engine over the demo checkpoint, its cache client, and a real cache service process that
has every prompt's blocks on its SSD. In each round the service is started anew and broken in turn:
killed, hung (SIGSTOP), slow (its answers late by half the deadline), trickling (64 KiB/s) or
answering garbage (bytes of its answers changed), the last three by a proxy. Three prompts are
asked, one after the other. Before and after each, the same prompt is computed without a cache; the
slower of the two is what it is measured by. The bar is 1.10 x (computed + deadline). Of a request
above it, `waited_seconds_worst` and `computing_to_computed_median` say whether the cache was waited
for longer than the deadline, or computing itself took longer.

Whatever the cache does, the tokens must be those computed without it, and when the service is well
again its blocks must be hits again: exit status 1 when not. Times change no exit status.
"""

import argparse
import collections
import json
import os
import platform
import random
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kvtier.blocks import Tier
from kvtier.cli.processes import ServiceProcess, start_service
from kvtier.keys import PUBLIC_SCOPE
from worker.cache_client import CacheClient
from worker.demo_checkpoint import make_demo_checkpoint
from worker.engine import Engine, EngineSettings
from worker.model_loader import LoadedModel, load_model
from worker.requests import (
    CacheMode,
    EngineEvent,
    EngineRequest,
    EngineUsage,
    RequestEnded,
    RequestId,
    TokenEvent,
)

COMPLETION_TOKENS = 4
PROMPTS = 3
AFTERWARDS = 8
"""More of them, to see hits before and after; each is asked once or twice an engine's life."""
BACK_SECONDS_MAX = 60.0
TRICKLE_BYTES_PER_SECOND = 64 * 1024
FAULTS = ("killed", "hung", "slow", "trickling", "garbage")


class Proxy:
    """Passes bytes between a client and the service; what comes from the service may be late, slow
    or wrong. A thread for each direction of each connection; ends with its context."""

    def __init__(self, target: str, late_seconds: float, seed: int) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._late_seconds = late_seconds
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._chance = random.Random(seed)
        self._sockets: list[socket.socket] = []
        self.fault = ""
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        for each in [self._listener, *self._sockets]:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                service = socket.create_connection(self._target)
                self._sockets += [client, service]
                for source, sink, told in ((client, service, False), (service, client, True)):
                    threading.Thread(
                        target=self._pass, args=(source, sink, told), daemon=True
                    ).start()

    def _pass(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while data := source.recv(8192 if self.fault else 1 << 20):
                sink.sendall(self._worsened(data) if answers else data)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _worsened(self, data: bytes) -> bytes:
        if self.fault == "slow":
            time.sleep(self._late_seconds)
        elif self.fault == "trickling":
            time.sleep(len(data) / TRICKLE_BYTES_PER_SECOND)
        elif self.fault == "garbage":
            changed = bytearray(data)
            changed[self._chance.randrange(len(changed))] ^= 0xFF
            return bytes(changed)
        return data


@dataclass
class Answer:
    seconds: float
    tokens: list[int]
    usage: EngineUsage


class Bench:
    """The model, the service's data and what is measured."""

    def __init__(self, arguments: argparse.Namespace, directory: Path) -> None:
        self.arguments = arguments
        self.directory = directory
        self.loaded: LoadedModel = load_model(
            make_demo_checkpoint(arguments.checkpoint, lambda line: print(line, file=sys.stderr))
        )
        generator = torch.Generator().manual_seed(1)
        shape = (PROMPTS + AFTERWARDS, arguments.context)
        self.prompts = torch.randint(3, 8000, shape, generator=generator).tolist()
        self.plain = self.engine(None)
        self.names = iter(range(1_000_000))
        self.problems: list[str] = []
        self.rows: list[dict[str, Any]] = []

    def engine(self, cache: CacheClient | None) -> Engine:
        """With room for a few prompts in its pages."""
        tokens = self.loaded.block_tokens
        pages = -(-(self.arguments.context + COMPLETION_TOKENS) // tokens) + 1
        settings = EngineSettings(
            page_count=4 * pages, load_timeout_seconds=self.arguments.deadline
        )
        engine = Engine(self.loaded, settings, cache)
        engine.start()
        return engine

    def service(self, address: str = "127.0.0.1:0") -> ServiceProcess:
        settings = {
            "listen": address,
            "data_directory": self.directory / "data",
            "socket_path": self.directory / "a",
            "log.level": "ERROR",
            "host.capacity_bytes": "256MiB",
            "ssd.capacity_bytes": "512MiB",
            "ssd.segment_bytes": "32MiB",
        }
        return start_service("cache_service", settings, self.directory / "log")

    @contextmanager
    def worker(self, address: str, transport: Any) -> Iterator[tuple[Engine, CacheClient]]:
        loaded = self.loaded
        client = CacheClient(
            address,
            loaded.namespace.id,
            loaded.block_bytes,
            loaded.block_tokens,
            "bench",
            transport,
        )
        engine = self.engine(client)
        try:
            yield engine, client
        finally:
            engine.stop()
            client.close()

    def ask(self, engine: Engine, prompt: Sequence[int], mode: CacheMode) -> Answer:
        tokens: list[int] = []
        ends: list[RequestEnded] = []
        ended = threading.Event()

        def sink(event: EngineEvent) -> None:
            if isinstance(event, TokenEvent):
                tokens.append(event.token_id)
            if isinstance(event, RequestEnded):
                ends.append(event)
                ended.set()

        name = RequestId(f"ask-{next(self.names)}")
        began = time.perf_counter()
        engine.submit(
            EngineRequest(name, tuple(prompt), COMPLETION_TOKENS, PUBLIC_SCOPE, cache_mode=mode),
            sink,
        )
        ended.wait()
        return Answer(time.perf_counter() - began, tokens, ends[0].usage)

    def computed(self, prompt: Sequence[int]) -> Answer:
        return self.ask(self.plain, prompt, CacheMode.BYPASS)

    def fill(self) -> None:
        """Every prompt's blocks onto the SSD."""
        service = self.service()
        with self.worker(service.address, "auto") as (engine, client):
            for prompt in self.prompts:
                self.ask(engine, prompt, CacheMode.DEFAULT)
            if not engine.drain(60) or not client.counts().get("stored_blocks"):
                raise SystemExit("nothing was stored")
        service.stop()

    def round(self, fault: str) -> None:
        service = self.service()
        deadline = self.arguments.deadline
        proxied = fault in ("slow", "trickling", "garbage")
        proxy = Proxy(service.address, deadline / 2, self.arguments.seed) if proxied else None
        reached = service.address if proxy is None else proxy.address
        try:
            with self.worker(reached, "stream" if proxied else "auto") as (engine, client):
                self.measure_cost(engine)
                well = self.ask(engine, self.prompts[-1], CacheMode.DEFAULT)
                if not restored(well):
                    self.problems.append(f"before {fault}: nothing was a hit")
                breaks, heals = self.ways(fault, service, proxy)
                breaks()
                for number in range(PROMPTS):
                    self.compare(fault, number, engine)
                service = heals()
                self.await_hits(fault, engine, client)
        finally:
            if service.running:
                service.process.send_signal(signal.SIGCONT)
            service.stop()
            if proxy is not None:
                proxy.close()

    def measure_cost(self, engine: Engine) -> None:
        """A prompt computed, as in any worker that has been running for a while."""
        self.ask(engine, self.prompts[0][::-1], CacheMode.BYPASS)

    def ways(
        self, fault: str, service: ServiceProcess, proxy: Proxy | None
    ) -> tuple[Callable[[], object], Callable[[], ServiceProcess]]:
        """How to break the service, and how to make it well."""
        if proxy is not None:

            def proxied(to: str) -> ServiceProcess:
                proxy.fault = to
                return service

            return lambda: proxied(fault), lambda: proxied("")
        if fault == "killed":
            return service.kill, lambda: self.service(service.address)

        def go_on() -> ServiceProcess:
            service.process.send_signal(signal.SIGCONT)
            return service

        return lambda: service.process.send_signal(signal.SIGSTOP), go_on

    def compare(self, fault: str, number: int, engine: Engine) -> None:
        prompt = self.prompts[number]
        before = self.computed(prompt)
        broken = self.ask(engine, prompt, CacheMode.DEFAULT)
        after = self.computed(prompt)
        if not before.tokens == broken.tokens == after.tokens:
            self.problems.append(f"{fault}: other tokens than without a cache")
        computed = max(before.seconds, after.seconds)
        self.rows.append(
            {
                "fault": fault,
                "prompt": number,
                "seconds": broken.seconds,
                "computed_seconds": computed,
                "load_seconds": broken.usage.load_seconds,
                "queue_seconds": broken.usage.queue_seconds,
                "hit_tokens": broken.usage.hit_tokens,
                "miss_reason": broken.usage.miss_reason.name.lower(),
                "ratio_to_bound": broken.seconds / (computed + self.arguments.deadline),
                "ratio_to_computed": broken.seconds / computed,
            }
        )

    def await_hits(self, fault: str, engine: Engine, client: CacheClient) -> None:
        until = time.monotonic() + BACK_SECONDS_MAX
        number = 0
        reasons: collections.Counter[str] = collections.Counter()
        while time.monotonic() < until:
            number = (number + 1) % AFTERWARDS
            if not client.connected():
                reasons["not connected"] += 1
            else:
                answer = self.ask(engine, self.prompts[PROMPTS + number], CacheMode.DEFAULT)
                if restored(answer):
                    return
                reasons[answer.usage.miss_reason.name.lower()] += 1
            time.sleep(0.1)
        self.problems.append(
            f"{fault}: no hit {BACK_SECONDS_MAX:.0f} s after the service was well: "
            f"{dict(reasons)}, {dict(client.counts())}"
        )


def restored(answer: Answer) -> bool:
    """Whether any block came from the service."""
    hits = answer.usage.hit_tokens_by_tier
    return any(hits.get(tier) for tier in (Tier.HOST, Tier.SSD))


def summary(rows: list[dict[str, Any]], fault: str) -> dict[str, Any]:
    mine = [row for row in rows if row["fault"] == fault]
    return {
        "fault": fault,
        "requests": len(mine),
        "ratio_to_bound_median": statistics.median(row["ratio_to_bound"] for row in mine),
        "ratio_to_bound_worst": max(row["ratio_to_bound"] for row in mine),
        "ratio_to_computed_median": statistics.median(row["ratio_to_computed"] for row in mine),
        "waited_seconds_worst": max(row["load_seconds"] + row["queue_seconds"] for row in mine),
        "computing_to_computed_median": statistics.median(
            (row["seconds"] - row["load_seconds"] - row["queue_seconds"]) / row["computed_seconds"]
            for row in mine
        ),
        "miss_reasons": sorted({row["miss_reason"] for row in mine}),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--context", type=int, default=1024, help="tokens of a prompt")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--deadline", type=float, default=1.0, help="cache.load_timeout_seconds")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--checkpoint", type=Path, default=Path(".kvtier/bench-checkpoint"))
    parser.add_argument("--seed", type=int, default=1, help="of the bytes that are changed")
    parser.add_argument("--faults", default=",".join(FAULTS))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory(prefix="kvt-") as name:
        bench = Bench(arguments, Path(name))
        bench.computed(bench.prompts[0])  # warms up
        bench.fill()
        faults = arguments.faults.split(",")
        for number in range(arguments.rounds):
            for fault in faults:
                print(f"round {number + 1}: {fault}", file=sys.stderr)
                bench.round(fault)
        bench.plain.stop()
    found = {
        "machine": platform.platform(),
        "settings": {k: str(v) for k, v in vars(arguments).items()},
        "ratio_to_bound_worst": max(row["ratio_to_bound"] for row in bench.rows),
        "faults": [summary(bench.rows, fault) for fault in faults],
        "problems": bench.problems,
    }
    print(json.dumps(found, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(found | {"rows": bench.rows}, indent=1) + "\n")
    return 1 if bench.problems else 0


if __name__ == "__main__":
    sys.exit(main())
