"""Batches of single tokens over one pool, computed as usual and by recorded steps."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from worker.attention.step import AttentionStep
from worker.decode_steps import DecodeSteps, PlainCalls
from worker.kv_pages import KvPages, PageId
from worker.model_runner import ModelRunner, Span


@dataclass
class OldEyes:
    """Runs a step whose tensors are new while its Python sees the spans of the first time: as a
    recorded forward does, which has no Python."""

    runner: ModelRunner
    spans: dict[int, Any] = field(default_factory=dict)

    def __call__(self, step: AttentionStep, ids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        step.spans = self.spans.setdefault(id(step), step.spans)
        return self.runner.forward(step, ids, rows)


class Decoding:
    """Sequences of random lengths in pages anywhere, in a pool and in a second one like it."""

    def __init__(self, loaded: Any, attention: Any, count: int, longest: int, seed: int) -> None:
        self._size = loaded.layout.block_tokens
        each = -(-(longest + 2) // self._size)
        device = loaded.model.device
        self.kvs = [
            KvPages(loaded.layout, count * each, device, touched_count=count * each)
            for _ in range(2)
        ]
        self.runners = [ModelRunner(loaded.model, kv, attention) for kv in self.kvs]
        self._random = random.Random(seed)
        order = [PageId(page) for page in range(count * each)]
        self._random.shuffle(order)
        self.tables = [order[n * each : (n + 1) * each] for n in range(count)]
        self.known = [self._tokens(self._random.randint(1, longest)) for _ in range(count)]
        for known, table in zip(self.known, self.tables, strict=True):
            for runner in self.runners:
                runner.run([Span(known, 0, table, 1)])
        self.decodes = DecodeSteps(
            OldEyes(self.runners[1]), self.kvs[1], device, longest + 2, PlainCalls()
        )

    def both(self, which: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """A token more of these sequences: logits as usual, and by a recorded step."""
        for n in which:
            self.known[n] += self._tokens(1)
        starts = [len(self.known[n]) - 1 for n in which]
        last = [self.known[n][-1] for n in which]
        tables = [self.tables[n] for n in which]
        spans = [Span([t], s, p, 1) for t, s, p in zip(last, starts, tables, strict=True)]
        usual = self.runners[0].run(spans)
        recorded = self.decodes.run(starts, last, tables)
        assert recorded is not None
        return usual, recorded

    def _tokens(self, count: int) -> list[int]:
        return [self._random.randrange(3, 100) for _ in range(count)]
