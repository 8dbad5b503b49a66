"""How long until the first token, cold and with the context resident?

Per round a new context of `--context` tokens is asked twice with different last tokens: cold, then
warm from GPU pages. Beside it, in the same round, plain transformers prefills the same prompt.
Prints medians; `--json FILE` writes every value with machine and settings.
"""

import argparse
import json
import platform
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import torch

from kvtier.keys import PUBLIC_SCOPE
from worker.demo_checkpoint import make_demo_checkpoint
from worker.engine import Engine, EngineSettings
from worker.model_loader import load_model
from worker.requests import EngineEvent, EngineRequest, EngineUsage, RequestEnded, RequestId


def main() -> None:
    arguments = _parse()
    torch.set_num_threads(arguments.threads)
    directory = make_demo_checkpoint(arguments.checkpoint, print)
    plain = load_model(directory).model
    plain.set_attn_implementation("sdpa")
    loaded = load_model(directory)
    settings = EngineSettings(page_count=arguments.pages, step_tokens=arguments.step_tokens)
    engine = Engine(loaded, settings, None)
    engine.start()
    rounds = []
    for number in range(arguments.rounds + 1):
        measured = _round(engine, plain, arguments, number)
        if number:  # The first round warms up allocators and caches of both sides.
            rounds.append(measured)
            print("  ".join(f"{name} {value:.4f}" for name, value in measured.items()))
    engine.stop()
    _report(arguments, rounds)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pages", type=int, default=800)
    parser.add_argument("--step-tokens", type=int, default=512)
    parser.add_argument("--checkpoint", type=Path, default=Path(".kvtier/bench-checkpoint"))
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _round(
    engine: Engine, plain: Any, arguments: argparse.Namespace, number: int
) -> dict[str, float]:
    generator = torch.Generator().manual_seed(number)
    tokens = torch.randint(3, 8000, (arguments.context,), generator=generator).tolist()
    other = [*tokens[:-3], 5, 6, 7]
    started = time.perf_counter()
    with torch.inference_mode():
        plain(input_ids=torch.tensor([tokens]), use_cache=True, logits_to_keep=1)
    plain_seconds = time.perf_counter() - started
    cold_seconds, cold = _ask(engine, f"cold-{number}", tokens)
    warm_seconds, warm = _ask(engine, f"warm-{number}", other)
    assert cold.hit_tokens == 0
    assert warm.miss_tokens <= 64
    return {
        "plain_seconds": plain_seconds,
        "cold_seconds": cold_seconds,
        "warm_seconds": warm_seconds,
        "cold_by_plain": cold_seconds / plain_seconds,
        "cold_by_warm": cold_seconds / warm_seconds,
    }


def _ask(engine: Engine, name: str, tokens: list[int]) -> tuple[float, EngineUsage]:
    first: list[float] = []
    ends: list[RequestEnded] = []
    ended = threading.Event()

    def sink(event: EngineEvent) -> None:
        if not first:
            first.append(time.perf_counter())
        if isinstance(event, RequestEnded):
            ends.append(event)
            ended.set()

    request = EngineRequest(RequestId(name), tuple(tokens), 1, PUBLIC_SCOPE)
    started = time.perf_counter()
    engine.submit(request, sink)
    ended.wait()
    return first[0] - started, ends[0].usage


def _report(arguments: argparse.Namespace, rounds: list[dict[str, float]]) -> None:
    medians = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    print("median: " + "  ".join(f"{name} {value:.4f}" for name, value in medians.items()))
    if arguments.json:
        outcome = {
            "machine": platform.platform(),
            "torch": torch.__version__,
            "settings": {name: str(value) for name, value in vars(arguments).items()},
            "rounds": rounds,
            "medians": medians,
        }
        arguments.json.write_text(json.dumps(outcome, indent=2) + "\n")


if __name__ == "__main__":
    main()
