"""Steps over pages full of garbage, and what attention has to give for them, in float64."""

import os
from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st

from worker.attention.backend import AttentionBackend, Options, hidden_keys
from worker.attention.step import AttentionStep
from worker.kv_pages import KvPages
from worker.layout import BlockLayout, LayerLayout

__all__ = ["Case", "attended", "cases", "expected"]

DEVICE = torch.device(os.environ.get("KVTIER_ATTENTION_DEVICE", "cpu"))
LAYER = 1


@dataclass(frozen=True)
class Case:
    """One step. A span is how many tokens are in pages before it, and how many it has."""

    spans: tuple[tuple[int, int], ...]
    key_heads: int = 2
    group: int = 2
    dim: int = 8
    value_dim: int = 8
    block_tokens: int = 4
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    shared_pages: int = 0
    """So many first pages are the same for all spans that have them whole in their past."""
    in_order: bool = True
    """Pages lie one behind the other, or anywhere."""
    other_layer_heads: int | None = None
    """Of the other layer, so that heads fall into grains of several."""
    dtype: torch.dtype = torch.float32


class _Made:
    def __init__(self, case: Case) -> None:
        generator = torch.Generator().manual_seed(0)

        def drawn(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator).to(DEVICE, case.dtype)

        heads = case.key_heads * case.group
        contexts = [past + count for past, count in case.spans]
        self.tables = self._tables(case, contexts, generator)
        self.keys = [drawn(case.key_heads, n, case.dim) for n in contexts]
        self.values = [drawn(case.key_heads, n, case.value_dim) for n in contexts]
        self._share(case)
        self.query = drawn(heads, sum(count for _, count in case.spans), case.dim)
        sinks = drawn(heads) if case.sinks else None
        self.options = Options(case.dim**-0.5, case.window, case.softcap, sinks)
        other = case.other_layer_heads or case.key_heads
        layers = (
            LayerLayout(other, case.dim, other, case.value_dim),
            LayerLayout(case.key_heads, case.dim, case.key_heads, case.value_dim),
        )
        layout = BlockLayout(layers, case.block_tokens, case.dtype)
        self.kv = KvPages(layout, 1 + max(max(t) for t in self.tables if t), DEVICE)
        for columns in (*self.kv.keys, *self.kv.values):
            columns.tiles.fill_(float("nan"))

    def _tables(
        self, case: Case, contexts: list[int], generator: torch.Generator
    ) -> list[list[int]]:
        needs = [-(-n // case.block_tokens) for n in contexts]
        order = list(range(3, 3 + sum(needs)))
        if not case.in_order:
            order = torch.randperm(2 * len(order), generator=generator)[: len(order)].tolist()
        tables = [[order.pop(0) for _ in range(need)] for need in needs]
        first = case.spans[0][0] // case.block_tokens
        for table, (past, _) in zip(tables, case.spans, strict=True):
            common = min(case.shared_pages, past // case.block_tokens, first)
            table[:common] = tables[0][:common]
        return tables

    def _share(self, case: Case) -> None:
        for table, keys, values in zip(self.tables, self.keys, self.values, strict=True):
            common = sum(a == b for a, b in zip(table, self.tables[0], strict=False))
            tokens = common * case.block_tokens
            keys[:, :tokens] = self.keys[0][:, :tokens]
            values[:, :tokens] = self.values[0][:, :tokens]


def attended(case: Case, backend: type[AttentionBackend]) -> torch.Tensor:
    """What `backend` makes of it, `[tokens, heads, value_dim]`."""
    made = _Made(case)
    for (past, _), table, keys, values in zip(
        case.spans, made.tables, made.keys, made.values, strict=True
    ):
        if past:
            before = AttentionStep.of([(0, past, table)], case.block_tokens, DEVICE)
            made.kv.keys[LAYER].write(before.slot_pages, before.slot_offsets, keys[:, :past])
            made.kv.values[LAYER].write(before.slot_pages, before.slot_offsets, values[:, :past])
    spans = [(past, n, table) for (past, n), table in zip(case.spans, made.tables, strict=True)]
    step = AttentionStep.of(spans, case.block_tokens, DEVICE)
    new = [
        torch.cat([x[:, past:] for (past, _), x in zip(case.spans, states, strict=True)], 1)
        for states in (made.keys, made.values)
    ]
    made.kv.keys[LAYER].write(step.slot_pages, step.slot_offsets, new[0])
    made.kv.values[LAYER].write(step.slot_pages, step.slot_offsets, new[1])
    return backend(made.kv).attend(step, LAYER, made.query, new[0], new[1], made.options)


def expected(case: Case) -> torch.Tensor:
    made = _Made(case)
    parts = []
    row = 0
    for (past, count), keys, values in zip(case.spans, made.keys, made.values, strict=True):
        query = made.query[:, row : row + count].double()
        k = keys.double().repeat_interleave(case.group, 0)
        v = values.double().repeat_interleave(case.group, 0)
        scores = query @ k.transpose(1, 2) * made.options.scale
        if case.softcap is not None:
            scores = torch.tanh(scores / case.softcap) * case.softcap
        key_at = torch.arange(past + count, device=DEVICE)
        hidden = hidden_keys(key_at[past:, None], key_at[None], case.window)
        scores = scores.masked_fill(hidden, float("-inf"))
        total = scores.logsumexp(-1, keepdim=True)
        if made.options.sinks is not None:
            total = torch.logaddexp(total, made.options.sinks.double().view(-1, 1, 1))
        parts.append((torch.exp(scores - total) @ v).transpose(0, 1))
        row += count
    return torch.cat(parts)


_SPAN = st.one_of(
    st.tuples(st.integers(0, 40), st.just(1)),  # as decoding has them
    st.tuples(st.sampled_from([0, 0, 1, 3, 4, 7, 16]), st.integers(1, 12)),
)


def cases(*, wide_values: bool = True) -> st.SearchStrategy[Case]:
    return st.builds(
        Case,
        spans=st.lists(_SPAN, min_size=1, max_size=5).map(tuple),
        key_heads=st.sampled_from([1, 2, 4]),
        group=st.sampled_from([1, 2, 3]),
        dim=st.sampled_from([8, 12, 20]),
        value_dim=st.sampled_from([8, 12, 20]),
        block_tokens=st.sampled_from([1, 4, 8]),
        window=st.one_of(st.none(), st.integers(1, 30)),
        softcap=st.sampled_from([None, None, 2.0]),
        sinks=st.booleans(),
        shared_pages=st.sampled_from([0, 0, 1, 5]),
        in_order=st.booleans(),
        other_layer_heads=st.sampled_from([None, None, 2]),
    ).map(lambda case: case if wide_values else _narrow(case))


def _narrow(case: Case) -> Case:
    return replace(case, value_dim=case.dim)
