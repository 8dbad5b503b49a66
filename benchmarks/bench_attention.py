"""How fast are a prompt and decoding, by the worker's way of attending?

Steps of the model runner on the demo checkpoint, no engine around them. `decode`: steps of one
request and of several, on contexts of their own and on one that they share; how many tokens a
second the several get beside the one. `bound`: the step that only reads each weight and each
sequence's keys and values once, as fast as all threads read memory in the same round. `prompt`: a
whole prompt in the worker's pieces beside one forward of plain transformers (sdpa). All take turns
within a round; medians.

    python benchmarks/bench_attention.py [--contexts 128,4096] [--rounds 7] [--json]
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from worker.attention.choose import attention_choices
from worker.demo_checkpoint import make_demo_checkpoint
from worker.kv_pages import KvPages, PageId
from worker.model_loader import load_model
from worker.model_runner import ModelRunner, Span


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--contexts", default="128,4096", help="tokens, with commas between")
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4, help="decode steps of a turn")
    parser.add_argument("--piece", type=int, default=512, help="tokens of a prompt's piece")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--attention", help="a way by name; the device's first if not said")
    parser.add_argument("--no-prompt", action="store_true", help="decode alone")
    parser.add_argument("--checkpoint", type=Path, default=Path(".kvtier/bench-checkpoint"))
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    directory = make_demo_checkpoint(arguments.checkpoint, lambda line: None)
    plain = load_model(directory).model
    plain.set_attn_implementation("sdpa")
    loaded = load_model(directory)
    ways = {way.name: way for way in attention_choices(loaded.model.device)}
    way = ways[arguments.attention] if arguments.attention else loaded.attention
    rows = [
        measured(arguments, loaded, plain, way, int(context))
        for context in arguments.contexts.split(",")
    ]
    report = {
        "machine": platform.platform(),
        "torch": torch.__version__,
        "threads": arguments.threads,
        "attention": way.name,
        "requests": arguments.requests,
        "rounds": arguments.rounds,
        "results": rows,
    }
    if arguments.json:
        print(json.dumps(report))
        return
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()))


def measured(arguments: argparse.Namespace, loaded: Any, plain: Any, way: Any, context: int) -> Any:
    turns = Turns(arguments, loaded, plain, way, context)
    works: dict[str, Callable[[], None]] = {
        "read": turns.read,
        "one": lambda: turns.decode(turns.own[:1]),
        "own": lambda: turns.decode(turns.own),
        "shared": lambda: turns.decode(turns.shared),
    }
    if not arguments.no_prompt:
        works |= {"plain": turns.plain_prompt, "prompt": turns.prompt}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(arguments.rounds + 1):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - began)
    return turns.row(seconds)


class Turns:
    """One pool, filled with the same context for each request."""

    def __init__(
        self, arguments: argparse.Namespace, loaded: Any, plain: Any, way: Any, context: int
    ) -> None:
        self._arguments, self._plain, self._context = arguments, plain, context
        generator = torch.Generator().manual_seed(0)
        self._tokens = torch.randint(3, 8000, (context,), generator=generator).tolist()
        blocks = -(-context // loaded.block_tokens) + 1
        count = arguments.requests * blocks
        kv = KvPages(loaded.layout, count, loaded.model.device, touched_count=count)
        self._runner = ModelRunner(loaded.model, kv, way)
        pages = [PageId(page) for page in range(count)]
        self.own = [pages[n * blocks : (n + 1) * blocks] for n in range(arguments.requests)]
        whole = context // loaded.block_tokens
        self.shared = [[*self.own[0][:whole], *table[whole:]] for table in self.own]
        weights = loaded.model.parameters()
        self._weight_bytes = sum(x.numel() * x.element_size() for x in weights)
        self._context_bytes = context * loaded.block_bytes // loaded.block_tokens
        # As much as the largest step reads: what fits in a processor's cache says nothing.
        read_bytes = self._weight_bytes + arguments.requests * self._context_bytes
        self._memory = torch.ones(read_bytes // 4 // 4096, 4096)
        self.prompt()
        for table in self.own[1:]:
            for source, target in zip(self.own[0], table, strict=True):
                kv.copy_page(source, target)

    def decode(self, tables: list[list[PageId]]) -> None:
        for _ in range(self._arguments.steps):
            self._runner.run([Span([5], self._context, pages, 1) for pages in tables])

    def read(self) -> None:
        torch.mv(self._memory, torch.ones(4096))

    def prompt(self) -> None:
        piece = self._arguments.piece
        for start in range(0, self._context, piece):
            tokens = self._tokens[start : start + piece]
            self._runner.run([Span(tokens, start, self.own[0], 1)])

    def plain_prompt(self) -> None:
        with torch.inference_mode():
            self._plain(input_ids=torch.tensor([self._tokens]), use_cache=True, logits_to_keep=1)

    def row(self, seconds: dict[str, list[float]]) -> dict[str, Any]:
        requests, steps = self._arguments.requests, self._arguments.steps

        def ratio(ours: str, its: str, factor: float = 1.0) -> float:
            pairs = zip(seconds[ours], seconds[its], strict=True)
            return round(statistics.median(factor * b / a for a, b in pairs), 3)

        def rate(name: str, count: int) -> float:
            return round(statistics.median(count * steps / s for s in seconds[name]), 1)

        row: dict[str, Any] = {
            "context_tokens": self._context,
            "one_tokens_per_second": rate("one", 1),
            "own_tokens_per_second": rate("own", requests),
            "shared_tokens_per_second": rate("shared", requests),
            "own_by_one": ratio("own", "one", requests),
            "shared_by_one": ratio("shared", "one", requests),
            **self._bounds(seconds),
        }
        if "prompt" in seconds:
            row["plain_seconds"] = round(statistics.median(seconds["plain"]), 3)
            row["prompt_seconds"] = round(statistics.median(seconds["prompt"]), 3)
            row["prompt_by_plain"] = ratio("plain", "prompt")
        return row

    def _bounds(self, seconds: dict[str, list[float]]) -> dict[str, float]:
        requests, steps = self._arguments.requests, self._arguments.steps
        rates = [self._memory.nbytes / s for s in seconds["read"]]
        one_bytes, own_bytes = (
            self._weight_bytes + count * self._context_bytes for count in (1, requests)
        )

        def reached(name: str, read_bytes: int) -> float:
            pairs = zip(seconds[name], rates, strict=True)
            return round(statistics.median(steps * read_bytes / rate / s for s, rate in pairs), 3)

        return {
            "read_gb_per_second": round(statistics.median(rates) / 1e9, 1),
            "one_step_mb": round(one_bytes / 1e6, 1),
            "own_step_mb": round(own_bytes / 1e6, 1),
            "one_of_bound": reached("one", one_bytes),
            "own_of_bound": reached("own", own_bytes),
            "own_by_one_bound": round(requests * one_bytes / own_bytes, 3),
        }


if __name__ == "__main__":
    main()
