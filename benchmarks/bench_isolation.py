"""Can a stranger tell by time or by a reply whether a prompt is cached in another's scope?

    python benchmarks/bench_isolation.py [--trials 40] [--tokens 256] [--json FILE]

Two workers and a cache service. A trial: the owner, one user of a project, asks a prompt nobody had
before; then a guesser asks either that prompt or another that nobody had, by the toss of a coin,
and notes the time to its first token. Guessers are another organisation, another project, another
user of the same project, and the owner itself: the control, which must be able to tell. They ask at
the owner's worker (blocks in its pages) or at the other one (blocks in the cache service). The last
line takes all strangers together.

For each: AUC, the chance that a cached prompt answers sooner than an absent one (0.5: nothing can
be told, 1: everything), and p, how often shuffled labels give an AUC as far from 0.5. Also whether
any field of a reply but measured times and the request's random name ever differed.

Exit status 1 when a stranger can tell (p under 0.01 over the number of comparisons, or a field
differs) or the control cannot (AUC under 0.8).
"""

import argparse
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from kvtier.cli.channel import open_channel
from kvtier.cli.processes import ServiceProcess, start_service
from kvtier.v1 import inference_pb2 as pb
from kvtier.v1 import inference_pb2_grpc
from worker.demo_checkpoint import make_demo_checkpoint

OWNER = ("acme", "search", "ann")
GUESSERS = {
    "owner": OWNER,
    "another organisation": ("umbra", "search", "ann"),
    "another project": ("acme", "lab", "ann"),
    "another user": ("acme", "search", "bob"),
}
PLACES = ("pages", "cache service")
TIMES = ("request_id", "ttft", "queue_time", "load_time", "end_time")
OFFLOAD_SECONDS = 0.05
"""Between owner and guesser: the owner's blocks are then in the cache service."""
CONTROL_AUC_MIN = 0.8
SHUFFLES = 20_000
CALL_SECONDS_MAX = 60.0

Ranks = Any
"""An array of places, or a sum of some."""


@dataclass
class Observed:
    """What one guesser saw at one place."""

    cached: list[float] = field(default_factory=list)
    absent: list[float] = field(default_factory=list)
    cached_replies: set[bytes] = field(default_factory=set)
    absent_replies: set[bytes] = field(default_factory=set)


def main() -> int:
    arguments = parse()
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-isolation-") as directory:
        checkpoint = make_demo_checkpoint(arguments.checkpoint, lambda line: None)
        with workers(Path(directory), checkpoint) as stubs:
            observed = watch(stubs, arguments, chance)
    observed["all strangers", "both"] = together(
        [seen for (guesser, _), seen in observed.items() if guesser != "owner"]
    )
    results = [judge(*key, seen, arguments.seed) for key, seen in observed.items()]
    show(results)
    if arguments.json:
        settings = {name: str(value) for name, value in vars(arguments).items()}
        report = {"machine": platform.platform(), "settings": settings, "results": results}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    strangers = len(results) - len(PLACES)
    told = [r for r in results if r["guesser"] != "owner" and can_tell(r, strangers)]
    blind = [r for r in results if r["guesser"] == "owner" and r["auc"] < CONTROL_AUC_MIN]
    for result in told:
        print(f"FAILED: {result['guesser']} can tell, at the {result['place']}")
    for result in blind:
        print(f"FAILED: the control cannot tell, at the {result['place']}: the trial is too weak")
    return 1 if told or blind else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=40, help="for each side of the coin")
    parser.add_argument("--tokens", type=int, default=256, help="of a prompt")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--checkpoint", type=Path, default=Path(".kvtier/bench-checkpoint"))
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


@contextmanager
def workers(
    directory: Path, checkpoint: Path
) -> Iterator[list[inference_pb2_grpc.InferenceServiceStub]]:
    """Two workers that share a secret and a cache service; the owner asks the first."""
    secret = directory / "secret"
    secret.write_bytes(os.urandom(32))
    with ExitStack() as parts:
        cache = {
            "listen": "127.0.0.1:0",
            "data_directory": directory / "cache",
            "ssd.enabled": "false",
        }
        service = started(parts, "cache_service", cache, directory / "cache.log")
        stubs = []
        for name in ("first", "second"):
            settings = {
                "model": checkpoint,
                "listen": "127.0.0.1:0",
                "tenants": "acme,umbra",
                "data_directory": directory / name,
                "scope_secret_file": secret,
                "cache.address": service.address,
                "threads": "1",
            }
            worker = started(parts, "worker", settings, directory / f"{name}.log")
            channel = parts.enter_context(open_channel(worker.address))
            stubs.append(inference_pb2_grpc.InferenceServiceStub(channel))
        yield stubs


def started(parts: ExitStack, room: str, settings: dict[str, Any], log: Path) -> ServiceProcess:
    process = start_service(room, settings, log)
    parts.callback(process.stop)
    return process


def watch(
    stubs: list[inference_pb2_grpc.InferenceServiceStub],
    arguments: argparse.Namespace,
    chance: random.Random,
) -> dict[tuple[str, str], Observed]:
    """All trials, in a random order."""

    def prompt() -> list[int]:
        return [chance.randrange(300, 8000) for _ in range(arguments.tokens)]

    for stub in stubs * 3:  # allocators and caches of both sides
        ask(stub, OWNER, prompt())
    observed = {(guesser, place): Observed() for guesser in GUESSERS for place in PLACES}
    trials = [(*key, coin) for key in observed for coin in (True, False)] * arguments.trials
    chance.shuffle(trials)
    for guesser, place, cached in trials:
        owned, fresh = prompt(), prompt()
        ask(stubs[0], OWNER, owned)
        time.sleep(OFFLOAD_SECONDS)
        stub = stubs[PLACES.index(place)]
        seconds, reply = ask(stub, GUESSERS[guesser], owned if cached else fresh)
        seen = observed[guesser, place]
        (seen.cached if cached else seen.absent).append(seconds)
        (seen.cached_replies if cached else seen.absent_replies).add(reply)
    return observed


def ask(
    stub: inference_pb2_grpc.InferenceServiceStub, who: tuple[str, str, str], tokens: list[int]
) -> tuple[float, bytes]:
    """Seconds to the first token, and the usage less its measured times."""
    tenant, project, user = who
    request = pb.GenerateRequest(
        tenant_id=tenant,
        project_id=project,
        user_id=user,
        cache_scope=pb.CACHE_SCOPE_USER,
        tokens=pb.TokenPrompt(token_ids=tokens),
        max_completion_tokens=1,
        ignore_end_of_sequence=True,
    )
    first = 0.0
    usage = pb.GenerateUsage()
    began = time.perf_counter()
    for response in stub.Generate(request, timeout=CALL_SECONDS_MAX):
        if not first and response.HasField("delta"):
            first = time.perf_counter() - began
        if response.HasField("usage"):
            usage.CopyFrom(response.usage)
    for name in TIMES:
        usage.ClearField(name)
    return first, usage.SerializeToString(deterministic=True)


def together(parts: list[Observed]) -> Observed:
    """Fair, because each part has as many cached prompts as absent ones."""
    return Observed(
        [seconds for part in parts for seconds in part.cached],
        [seconds for part in parts for seconds in part.absent],
        set().union(*(part.cached_replies for part in parts)),
        set().union(*(part.absent_replies for part in parts)),
    )


def judge(guesser: str, place: str, seen: Observed, seed: int) -> dict[str, Any]:
    ranks = rank(np.asarray(seen.cached + seen.absent))
    count = len(seen.cached)
    auc = area(ranks[:count].sum(), count, len(seen.absent))
    generator = np.random.default_rng(seed)
    sums = [generator.permutation(ranks)[:count].sum() for _ in range(SHUFFLES)]
    shuffled = area(np.asarray(sums), count, len(seen.absent))
    extreme = int((np.abs(shuffled - 0.5) >= abs(auc - 0.5) - 1e-12).sum())
    return {
        "guesser": guesser,
        "place": place,
        "trials": count + len(seen.absent),
        "cached_p50_ms": 1000 * statistics.median(seen.cached),
        "absent_p50_ms": 1000 * statistics.median(seen.absent),
        "auc": float(auc),
        "p": (extreme + 1) / (SHUFFLES + 1),
        "replies_alike": seen.cached_replies == seen.absent_replies
        and len(seen.cached_replies) == 1,
    }


def rank(values: Ranks) -> Ranks:
    """Places from 1 in ascending order; measured times have no ties."""
    ranks = np.empty(len(values))
    ranks[values.argsort()] = np.arange(1, len(values) + 1)
    return ranks


def area(rank_sum: Ranks, cached: int, absent: int) -> Ranks:
    """Of the ranks of the cached ones: how often one of them is the sooner of a pair."""
    return 1 - (rank_sum - cached * (cached + 1) / 2) / (cached * absent)


def can_tell(result: dict[str, Any], comparisons: int) -> bool:
    return result["p"] < 0.01 / comparisons or not result["replies_alike"]


def show(results: list[dict[str, Any]]) -> None:
    print(f"{'guesser':22}{'at the':15}{'cached':>10}{'absent':>10}{'AUC':>8}{'p':>9}  replies")
    for r in results:
        times = f"{r['cached_p50_ms']:7.1f} ms{r['absent_p50_ms']:7.1f} ms"
        alike = "alike" if r["replies_alike"] else "differ"
        print(f"{r['guesser']:22}{r['place']:15}{times}{r['auc']:8.3f}{r['p']:9.4f}  {alike}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except grpc.RpcError as error:
        sys.exit(f"bench_isolation: {error}")
