"""Decode steps that are recorded once for a size of batch and then replayed: what a model's Python
costs for each step, a recorded one does not pay.

    all spans are single tokens -> the next larger batch that is recorded, its rest padded
                                -> fill its tensors -> replay -> the logits of those that are asked

Anything else, and a batch that could not be recorded, is computed as usual. On a CUDA device a
record is a graph; elsewhere it is the same call on the same tensors, which costs what it costs and
is there to be tested. Invariant: a record reads nothing but its step's tensors and the pages.
Engine's thread.
"""

import bisect
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from worker.attention.static_step import StaticStep
from worker.attention.step import AttentionStep
from worker.kv_pages import KvPages, PageId

__all__ = ["BATCHES", "Call", "DecodeSteps", "PlainCalls", "Recorder", "recorder_for"]

log = logging.getLogger(__name__)

BATCHES = (1, 2, 4, 8, 16, 24, 32, 48, 64)
"""Sizes that are recorded, when they are first wanted. A larger one keeps a device busy anyway."""

Call = Callable[[], torch.Tensor]


class Recorder(Protocol):
    """Makes of a call one that does the same again, on the same memory."""

    def record(self, call: Call) -> Call:
        """What it returns gives the same tensor each time. Raises whatever goes wrong."""
        ...


class PlainCalls:
    """The call itself."""

    def record(self, call: Call) -> Call:
        return call


def recorder_for(device: torch.device) -> Recorder:
    if device.type != "cuda":
        return PlainCalls()
    from worker.cuda_graphs import CudaGraphs

    return CudaGraphs()


class DecodeSteps:
    """Of one model and pool. `forward(step, token_ids, rows)` gives the logits of those rows."""

    def __init__(
        self,
        forward: Callable[[AttentionStep, torch.Tensor, torch.Tensor], torch.Tensor],
        kv: KvPages,
        device: torch.device,
        context_tokens: int,
        recorder: Recorder,
    ) -> None:
        self._forward = forward
        self._kv = kv
        self._device = device
        self._table_pages = -(-context_tokens // kv.layout.block_tokens)
        self._recorder = recorder
        self._records: dict[int, tuple[StaticStep, Call]] = {}
        self.problems: dict[int, str] = {}
        """Batches that could not be recorded, and why."""
        self.replayed_count = 0

    def run(
        self, starts: Sequence[int], token_ids: Sequence[int], pages: Sequence[Sequence[PageId]]
    ) -> torch.Tensor | None:
        """Logits of one token of each sequence; None: it has to be computed as usual."""
        count = len(starts)
        at = bisect.bisect_left(BATCHES, count)
        size = self._kv.layout.block_tokens
        if at == len(BATCHES) or max(starts) >= self._table_pages * size:
            return None
        spans = [
            (start, 1, table[: start // size + 1])
            for start, table in zip(starts, pages, strict=True)
        ]
        found = self._records.get(BATCHES[at]) or self._record(BATCHES[at], spans, token_ids)
        if found is None:
            return None
        step, replay = found
        step.fill(spans, token_ids)
        self.replayed_count += 1
        # A copy: the next replay writes there.
        return replay()[:count].clone()

    def _record(
        self, batch: int, spans: Sequence[tuple[int, int, Sequence[int]]], token_ids: Sequence[int]
    ) -> tuple[StaticStep, Call] | None:
        if batch in self.problems:
            return None
        step = StaticStep(
            batch,
            self._kv.layout.block_tokens,
            self._device,
            self._table_pages,
            self._kv.scratch_page,
        )
        # Recording computes: the very tokens that are wanted, into their own pages.
        step.fill(spans, token_ids)
        try:
            replay = self._recorder.record(
                lambda: self._forward(step, step.token_ids, step.all_rows)
            )
        except Exception as error:
            self.problems[batch] = f"{type(error).__name__}: {error}"
            log.warning(
                "a decode step cannot be recorded; batches of this size are computed as usual",
                extra={"batch": batch, "problem": self.problems[batch]},
            )
            return None
        self._records[batch] = (step, replay)
        return step, replay
