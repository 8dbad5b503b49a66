"""What does offloading cost those who decode, and what a cache service that hangs?

    python benchmarks/bench_offload_cost.py [--context 512] [--requests 4] [--tokens 32]
        [--rounds 40] [--json FILE]

A worker's engine over the demo checkpoint, its cache client, and a real cache service process with
its SSD. In each round new prompts are computed and decoded together in three ways, another one
first in every round:

    alone     requests keep nothing and ask for nothing: the cache service has no part in it
    offload   every prompt's blocks are offered when it is computed: they are copied, hashed,
              committed and written to the SSD while its answer is decoded
    hung      the service is stopped (SIGSTOP), so that these offers hang

Counted are tokens a second from the last request's first token to the first one's last. Figures are
medians over rounds, costs those of one round; the first round does not count. The bars: offloading
costs decode less than 3 %, a hung service less than 1 %. Times change no exit status.
"""

import argparse
import json
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from kvtier.bench.errors import BenchError
from kvtier.bench.figures import machine, percentile
from kvtier.bench.service import cache_service_process
from kvtier.cli.processes import ServiceProcess
from worker.bench.ttft_asking import Answer, ask_together, fresh_engine
from worker.bench.ttft_decode import rate_of
from worker.bench.ttft_tiers import random_tokens
from worker.bench.waiting import until, until_connected, until_written
from worker.cache_client import CacheClient
from worker.demo_checkpoint import make_demo_checkpoint
from worker.engine import Engine, EngineSettings
from worker.model_loader import LoadedModel, load_model
from worker.requests import CacheMode

WAYS = ("alone", "offload", "hung")
COST_MAX = {"offload": 0.03, "hung": 0.01}


class Bench:
    """One engine for all ways, so that they have the same memory and threads."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        loaded: LoadedModel,
        service: ServiceProcess,
        client: CacheClient,
        engine: Engine,
    ) -> None:
        self._arguments = arguments
        self._loaded = loaded
        self._service = service
        self._client = client
        self._engine = engine

    def round(self, number: int) -> dict[str, float]:
        """Tokens a second by way. Raises BenchError."""
        rates = {}
        for step in range(len(WAYS)):
            way = WAYS[(number + step) % len(WAYS)]
            # New ones for each way: what is stored already would not be stored again.
            generator = torch.Generator().manual_seed(len(WAYS) * number + WAYS.index(way))
            prompts = [
                random_tokens(self._loaded, self._arguments.context, generator)
                for _ in range(self._arguments.requests)
            ]
            rates[way] = rate_of(getattr(self, f"_{way}")(prompts))
        return rates

    def _alone(self, prompts: Sequence[list[int]]) -> list[Answer]:
        return self._ask(prompts, CacheMode.READ_ONLY)

    def _offload(self, prompts: Sequence[list[int]]) -> list[Answer]:
        before = self._client.counts().get("stored_blocks", 0)
        answers = self._ask(prompts, CacheMode.DEFAULT)
        self._until_offers_ended()
        until_written(self._service)
        blocks = self._arguments.requests * (self._arguments.context // self._loaded.block_tokens)
        if self._client.counts().get("stored_blocks", 0) - before < blocks:
            raise BenchError(f"not everything was stored: {self._client.counts()}")
        return answers

    def _hung(self, prompts: Sequence[list[int]]) -> list[Answer]:
        self._service.process.send_signal(signal.SIGSTOP)
        try:
            answers = self._ask(prompts, CacheMode.DEFAULT)
        finally:
            self._service.process.send_signal(signal.SIGCONT)
        self._until_offers_ended()
        until_connected(self._client)
        until_written(self._service)
        return answers

    def _ask(self, prompts: Sequence[list[int]], mode: CacheMode) -> list[Answer]:
        # Nothing of these prompts is cached: the load is not what is asked about.
        tokens = self._arguments.tokens
        return ask_together(self._engine, prompts, tokens, mode, cache_timeout_seconds=0.0)

    def _until_offers_ended(self) -> None:
        """Stored or not: all prompts are new, so none is there already."""
        offered = self._engine.stats().offered_blocks_total

        def ended() -> bool:
            counts = self._client.counts()
            return counts.get("stored_blocks", 0) + counts.get("refused_blocks", 0) >= offered

        until("the end of all offers", ended)


@contextmanager
def client_of(loaded: LoadedModel, service: ServiceProcess) -> Iterator[CacheClient]:
    client = CacheClient(
        service.address,
        loaded.namespace.id,
        loaded.block_bytes,
        loaded.block_tokens,
        "bench-offload",
    )
    try:
        until_connected(client)
        yield client
    finally:
        client.close()


def engine_settings(arguments: argparse.Namespace, loaded: LoadedModel) -> EngineSettings:
    """With room for two batches, so that pages are evicted while others decode, as they are."""
    pages = -(-(arguments.context + arguments.tokens) // loaded.block_tokens) + 1
    return EngineSettings(page_count=2 * arguments.requests * pages)


def summary(rounds: Sequence[dict[str, float]], way: str) -> dict[str, Any]:
    """A cost is the share of decoding's speed that is lost; its error is that of a median."""
    costs = [1 - each[way] / each["alone"] for each in rounds]
    low, high = percentile(costs, 25), percentile(costs, 75)
    return {
        "way": way,
        "tokens_per_second": statistics.median(each[way] for each in rounds),
        "cost": statistics.median(costs),
        "cost_quartiles": [low, high],
        "cost_standard_error": 0.93 * (high - low) / len(costs) ** 0.5,
        "cost_max": COST_MAX.get(way),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--context", type=int, default=512, help="tokens of a prompt")
    parser.add_argument("--requests", type=int, default=4, help="that decode at once")
    parser.add_argument("--tokens", type=int, default=32, help="that each generates")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: its own number")
    parser.add_argument("--checkpoint", type=Path, default=Path(".kvtier/bench-checkpoint"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    loaded = load_model(
        make_demo_checkpoint(arguments.checkpoint, lambda line: print(line, file=sys.stderr))
    )
    rounds = []
    # On the disk of the working directory, which is no memory.
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-", dir=".") as name:
        terms = {
            "data_directory": Path(name).absolute() / "cache",
            "ssd.scrub_bytes_per_second": 0,
        }
        with (
            cache_service_process(terms) as service,
            client_of(loaded, service) as client,
            fresh_engine(loaded, engine_settings(arguments, loaded), client) as engine,
        ):
            bench = Bench(arguments, loaded, service, client, engine)
            for number in range(arguments.rounds + 1):
                rates = bench.round(number)
                print(
                    f"round {number}: " + ", ".join(f"{w} {r:.1f}" for w, r in rates.items()),
                    file=sys.stderr,
                )
                if number:
                    rounds.append(rates)
    found = {
        **machine(),
        "settings": {k: str(v) for k, v in vars(arguments).items()},
        "ways": [summary(rounds, way) for way in WAYS],
    }
    print(json.dumps(found, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(found | {"rounds": rounds}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
