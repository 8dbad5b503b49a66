"""A block's bytes are the same however many workers share the heads that wrote them."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worker.kv_pages import KvPages, PageId
from worker.layout import BlockLayout, LayerLayout
from worker.paged_columns import PagedColumns

GOLDEN = Path(__file__).parents[2] / "golden" / "block.json"
CPU = torch.device("cpu")
PAGE = PageId(1)
States = list[torch.Tensor]
"""Keys and values of one layer after the other, `[heads, tokens, dim]` each."""

layouts = st.builds(
    lambda layers, grains, tokens: BlockLayout(
        tuple(LayerLayout(k * grains, kd, v * grains, vd) for k, kd, v, vd in layers),
        tokens,
        torch.float32,
    ),
    st.lists(
        st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 3), st.integers(1, 5)),
        min_size=1,
        max_size=3,
    ),
    st.integers(1, 6),
    st.integers(1, 5),
)


class Worker:
    """Worker `rank` of `of`: a page pool for its share of the heads, and nothing else."""

    def __init__(self, layout: BlockLayout, rank: int, of: int) -> None:
        self._shares = min(of, layout.grain_count)
        self._share = rank * self._shares // of
        self._kv = KvPages(layout.split(of), 2, CPU)
        self._part = layout.part(rank, of)

    def write(self, states: States, block: np.ndarray) -> None:
        tokens = torch.arange(states[0].shape[1])
        for columns, full in zip(self._columns(), states, strict=True):
            columns.write(torch.full_like(tokens, PAGE), tokens, self.mine(full))
        block[self._part.start : self._part.stop] = self._kv.source([PAGE])[0]

    def read(self, block: np.ndarray) -> States:
        self._kv.landing([PAGE])[0][:] = block[self._part.start : self._part.stop]
        return [columns.tiles[PAGE].flatten(0, 1) for columns in self._columns()]

    def mine(self, full: torch.Tensor) -> torch.Tensor:
        return full.chunk(self._shares)[self._share]

    def _columns(self) -> list[PagedColumns]:
        return [c for pair in zip(self._kv.keys, self._kv.values, strict=True) for c in pair]


def drawn(layout: BlockLayout, seed: int = 0) -> States:
    generator = torch.Generator().manual_seed(seed)
    shapes = [
        s for x in layout.layers for s in ((x.key_heads, x.key_dim), (x.value_heads, x.value_dim))
    ]
    return [
        torch.randn(heads, layout.block_tokens, dim, generator=generator) for heads, dim in shapes
    ]


def written(layout: BlockLayout, states: States, of: int) -> np.ndarray:
    block = np.full(layout.block_bytes, 0xEE, np.uint8)
    for rank in range(of):
        Worker(layout, rank, of).write(states, block)
    return block


def splits(layout: BlockLayout) -> list[int]:
    """Those that divide the grains, and two that have more workers than grains."""
    grains = layout.grain_count
    return [n for n in range(1, grains + 1) if grains % n == 0] + [2 * grains, 3 * grains]


@given(layouts, st.data())
def test_block_written_under_one_split_is_read_under_another(
    layout: BlockLayout, data: st.DataObject
) -> None:
    states = drawn(layout)
    block = written(layout, states, data.draw(st.sampled_from(splits(layout)), "written by"))
    assert np.array_equal(block, written(layout, states, 1))
    of = data.draw(st.sampled_from(splits(layout)), "read by")
    for rank in range(of):
        worker = Worker(layout, rank, of)
        for got, full in zip(worker.read(block), states, strict=True):
            assert torch.equal(got, worker.mine(full))


@given(layouts)
def test_every_element_lies_where_the_document_says(layout: BlockLayout) -> None:
    """docs/formats/block.md, "Where an element lies", written out."""
    states = drawn(layout)
    flat = written(layout, states, 1).view(np.float32)
    tokens, grains = layout.block_tokens, layout.grain_count
    start = 0
    grain_elements = layout.block_elements // grains
    for place, full in enumerate(states):
        heads, _, dim = full.shape
        each = heads // grains
        for h, t, d in np.ndindex(*full.shape):
            at = (h // each) * grain_elements + start + ((h % each) * tokens + t) * dim + d
            assert flat[at] == full[h, t, d], (place, h, t, d)
        start += tokens * each * dim
    assert start == grain_elements


def test_bytes_of_one_block_are_golden() -> None:
    layers = (LayerLayout(4, 3, 4, 2), LayerLayout(2, 2, 2, 3))
    layout = BlockLayout(layers, 2, torch.float32)
    numbers = iter(range(1000))
    states = [torch.zeros_like(x).apply_(lambda _: next(numbers)) for x in drawn(layout)]
    block = written(layout, states, 2)
    found = {
        "describe": layout.describe(),
        "parts_of_2": [[p.start, p.stop] for p in (layout.part(0, 2), layout.part(1, 2))],
        "elements": block.view(np.float32).astype(int).tolist(),
        "bytes": block.tobytes().hex(),
    }
    if os.environ.get("KVTIER_REWRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(found) + "\n")
    assert found == json.loads(GOLDEN.read_text())


def test_latents_belong_to_every_worker_whole() -> None:
    layout = BlockLayout((LayerLayout(1, 8, 1, 4),) * 2, 4, torch.bfloat16)
    assert layout.grain_count == 1
    assert [layout.part(rank, 4) for rank in range(4)] == [range(layout.block_bytes)] * 4


@pytest.mark.parametrize("of", [0, 4, 5, 8, 9])
def test_split_that_would_cut_a_grain_is_refused(of: int) -> None:
    layout = BlockLayout((LayerLayout(6, 8, 6, 8),), 4, torch.float32)
    with pytest.raises(ValueError, match="grains"):
        layout.part(0, of)
    with pytest.raises(ValueError, match="grains"):
        layout.split(of)


def test_rank_outside_the_split_is_refused() -> None:
    layout = BlockLayout((LayerLayout(6, 8, 6, 8),), 4, torch.float32)
    for rank in (-1, 2):
        with pytest.raises(ValueError, match="rank"):
            layout.part(rank, 2)


def test_gathered_heads_are_those_of_the_pages_in_their_order() -> None:
    layout = BlockLayout((LayerLayout(4, 3, 2, 5), LayerLayout(2, 2, 2, 2)), 4, torch.float32)
    kv = KvPages(layout, 5, CPU, touched_count=5)
    wanted = torch.tensor([3, 0, 4])
    for columns in (*kv.keys, *kv.values):
        columns.tiles.copy_(torch.randn(columns.tiles.shape))
        rows = columns.row_index(wanted)
        got = columns.gather(rows, torch.empty(1000))
        expected = columns.tiles[wanted].flatten(1, 2).transpose(0, 1).flatten(1, 2)
        assert torch.equal(got, expected)
