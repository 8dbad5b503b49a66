"""Attention by our own Triton kernels, which read pages by block tables: nothing is gathered.

The host makes a list of work for each step and window: tiles of rows of prompts' pieces, and single
queries, whose long contexts are cut into parts so that a small batch keeps a large device busy.
Imported only where Triton is.
"""

from dataclasses import dataclass

import numpy as np
import torch
import triton

from worker.attention.backend import Options
from worker.attention.step import AttentionStep, Numbers
from worker.attention.triton_kernels import attend_work, sum_parts
from worker.kv_pages import KvPages
from worker.paged_columns import PagedColumns

__all__ = ["PART_PAGES_MIN", "TritonBackend", "Work", "plan_work"]

TILE_ROWS = 64
WIDE_DIM = 256
"""From here on a tile has fewer rows: its sums must fit registers."""
PART_PAGES_MIN = 4
"""Pages of a part at least: weighing parts costs something too."""
PARTS_MAX = 64
PROGRAMS_PER_PROCESSOR = 2


@dataclass(frozen=True, slots=True)
class Work:
    """What the kernels are told of one step and window. Tensors of int64 on the device."""

    entries: torch.Tensor
    """`[works, 5]`: span, first row, pages `[first, end)` of its table, slot or -1."""
    spans: torch.Tensor
    """`[spans, 3]`: first query, queries, context."""
    tables: torch.Tensor
    """`[spans, pages of the longest]`."""
    sums: torch.Tensor
    """`[queries cut into parts, 3]`: query, first slot, slots."""


def plan_work(
    step: AttentionStep, window: int | None, group: int, tile_rows: int, parts_wanted: int
) -> list[Numbers]:
    """What `Work` has, in its order. `group` heads share a key head; a single query's context is
    cut into at most `parts_wanted` parts; into as many in a step that is filled again and again,
    some of which may have no page."""
    fixed = step.table_pages is not None
    entries: list[tuple[int, int, int, int, int]] = []
    sums: list[tuple[int, int, int]] = []
    slots = 0
    for index, span in enumerate(step.spans):
        for first_row in range(0, span.query_count * group, tile_rows):
            first = span.past + first_row // group
            last = span.past + min((first_row + tile_rows - 1) // group, span.query_count - 1)
            oldest = 0 if window is None else max(0, first - window + 1)
            begin, end = oldest // step.block_tokens, last // step.block_tokens + 1
            parts = 1
            if span.query_count == 1:
                most = parts_wanted if fixed else max(1, (end - begin) // PART_PAGES_MIN)
                parts = min(parts_wanted, PARTS_MAX, most)
            if parts == 1:
                entries.append((index, first_row, begin, end, -1))
                continue
            bounds = [begin + (end - begin) * part // parts for part in range(parts + 1)]
            if first_row == 0:
                sums.append((span.query_start, slots, parts))
                slots += parts
            for part in range(parts):
                slot = slots - parts + part
                entries.append((index, first_row, bounds[part], bounds[part + 1], slot))
    width = step.table_pages or max(len(span.pages) for span in step.spans)
    tables = np.zeros((len(step.spans), width), np.int64)
    for row, span in zip(tables, step.spans, strict=True):
        row[: len(span.pages)] = span.pages
    return [
        np.array(entries, np.int64).reshape(-1, 5),
        np.array([(s.query_start, s.query_count, s.context) for s in step.spans], np.int64),
        tables,
        np.array(sums, np.int64).reshape(-1, 3),
    ]


class TritonBackend:
    """Reads pages where they lie, for every span."""

    name = "triton"

    def __init__(self, kv: KvPages) -> None:
        self._kv = kv
        self._programs = PROGRAMS_PER_PROCESSOR * _processors(kv)

    def attend(
        self,
        step: AttentionStep,
        layer: int,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        options: Options,
    ) -> torch.Tensor:
        return self.attend_pages(step, self._kv.keys[layer], self._kv.values[layer], query, options)

    def attend_pages(
        self,
        step: AttentionStep,
        keys: PagedColumns,
        values: PagedColumns,
        query: torch.Tensor,
        options: Options,
    ) -> torch.Tensor:
        """`query` `[heads, tokens, dim]`, each head's elements in one run."""
        heads, tokens, dim = query.shape
        value_dim, group = values.at.dim, heads // keys.heads
        query = query if query.stride(2) == 1 else query.contiguous()
        rows = self._tile_rows(step, group, max(dim, value_dim))
        window, parts = options.window, self._parts(step, keys.heads)
        work = Work(
            *step.sent(
                ("work", window, group, rows, parts),
                lambda step: plan_work(step, window, group, rows, parts),
            )
        )
        out = query.new_empty(tokens, heads, value_dim)
        slots = len(work.sums) * min(parts, PARTS_MAX) or 1
        part = torch.empty(slots, heads, value_dim, dtype=torch.float32, device=query.device)
        part_sum = torch.empty(slots, heads, 2, dtype=torch.float32, device=query.device)
        sinks = out if options.sinks is None else options.sinks
        first, rest = _two_parts(dim)
        value_first, value_rest = _two_parts(value_dim)
        k, v = keys.tiles, values.tiles
        attend_work[(len(work.entries), keys.heads)](
            query, k, v, out, part, part_sum, sinks,
            work.entries, work.spans, work.tables,
            options.scale, options.softcap or 0.0, options.window or 0,
            query.stride(1), query.stride(0),
            k.stride(0), k.stride(1), k.stride(2), v.stride(0), v.stride(1), v.stride(2),
            out.stride(0), out.stride(1), work.tables.stride(0), heads,
            GROUP=group, K_EACH=keys.at.heads_per_grain, V_EACH=values.at.heads_per_grain,
            D=dim, D1=first, D2=rest, DV=value_dim, DV1=value_first, DV2=value_rest,
            BM=rows, BN=max(16, triton.next_power_of_2(step.block_tokens)),
            PAGE=step.block_tokens,
            SOFTCAP=options.softcap is not None, WINDOW=options.window is not None,
            HAS_SINKS=options.sinks is not None,
            PRECISION="ieee" if query.dtype == torch.float32 else "tf32",
        )  # fmt: skip
        if len(work.sums):
            sum_parts[(len(work.sums), heads)](
                part, part_sum, out, sinks, work.sums, out.stride(0), out.stride(1), heads,
                DV=value_dim, WIDTH=triton.next_power_of_2(value_dim),
                HAS_SINKS=options.sinks is not None,
            )  # fmt: skip
        return out

    def _tile_rows(self, step: AttentionStep, group: int, dim: int) -> int:
        longest = max(span.query_count for span in step.spans) * group
        most = 16 if dim > WIDE_DIM else TILE_ROWS
        return int(min(most, max(16, triton.next_power_of_2(longest))))

    def _parts(self, step: AttentionStep, key_heads: int) -> int:
        """Into how many parts a single query's context is cut, so that all have work."""
        singles = sum(span.query_count == 1 for span in step.spans)
        return max(1, self._programs // max(1, singles * key_heads))


def _two_parts(dim: int) -> tuple[int, int]:
    """A power of two and what is left, padded to one; a product takes 16 at least."""
    first = max(16, 1 << (dim.bit_length() - 1))
    return first, max(16, triton.next_power_of_2(max(dim - first, 1)))


def _processors(kv: KvPages) -> int:
    device = kv.keys[0].tiles.device
    if device.type != "cuda":
        return 8  # the interpreter's
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
