"""Single queries by a kernel of our own for processors, compiled at start; all else by torch.

Prompts' pieces, softcaps and half precision are left to `InPlaceBackend`. The kernel runs on the
threads that torch computes with.
"""

import logging
import math
import time
from typing import Any

import numpy as np
import torch

from worker.attention.backend import Options
from worker.attention.numba_kernels import ARGUMENTS, attend_kernel
from worker.attention.openmp import parallel
from worker.attention.page_units import PageUnits, page_units
from worker.attention.step import AttentionStep, Numbers
from worker.attention.torch_backend import InPlaceBackend
from worker.attention.vector_loops import REGISTER_FLOATS
from worker.kv_pages import KvPages
from worker.paged_columns import PagedColumns

__all__ = ["NumbaBackend"]

log = logging.getLogger(__name__)

ROW_REGISTERS = 16
"""Of 32, for what stays in them while a page is read."""
LOG2_E = math.log2(math.e)


class NumbaBackend(InPlaceBackend):
    """Reads pages where they lie, in any order, each once for all queries that see it."""

    name = "pages+numba"

    def __init__(self, kv: KvPages) -> None:
        super().__init__(kv)
        found = parallel()
        assert found is not None, "torch has no threads for us"
        self._parallel = found
        self._kernels: dict[tuple[int, ...], int] = {}
        self._places = [
            (_head_places(keys), _head_places(values))
            for keys, values in zip(kv.keys, kv.values, strict=True)
        ]
        self._room = np.empty(0, dtype=np.float32)

    def attend(
        self,
        step: AttentionStep,
        layer: int,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        options: Options,
    ) -> torch.Tensor:
        pieces = [index for index, span in enumerate(step.spans) if span.query_count > 1]
        single = len(pieces) < len(step.spans)
        if not (single and _takes(query, self._kv.keys[layer], options)):
            return super().attend(step, layer, query, keys, values, options)
        out = query.new_empty(query.shape[1], query.shape[0], values.shape[-1])
        if pieces:
            self._gathered(step, layer, query, (keys, values), options, pieces, out)
        self._by_kernel(step, layer, query, options, out)
        return out

    def _by_kernel(
        self,
        step: AttentionStep,
        layer: int,
        query: torch.Tensor,
        options: Options,
        out: torch.Tensor,
    ) -> None:
        """Fills the rows of single queries in `out`, which is contiguous."""
        threads = torch.get_num_threads()
        window = options.window
        units = step.once(("units", window), lambda: page_units(step, window, threads))
        keys, values = self._kv.keys[layer], self._kv.values[layer]
        if query.stride(2) != 1:
            query = query.contiguous()
        scale = np.array([options.scale * LOG2_E], dtype=np.float32)
        sinks = None if options.sinks is None else options.sinks.float().contiguous() * LOG2_E
        counters = units.counters.copy()
        group = query.shape[0] // keys.heads
        rows = _rows_together(group, keys.at.dim, values.at.dim)
        outs, sums, scores = self._memory(units, rows * (3 * step.block_tokens + 2), out)
        key_places, value_places = self._places[layer]
        given = {
            "next_unit": counters.ctypes.data,
            "unit_count": len(units.units),
            "units": units.units.ctypes.data,
            "entries": units.entries.ctypes.data,
            "entry_count": len(units.entries),
            "holders": units.holders.ctypes.data,
            "holder_count": len(units.holders),
            "query_count": len(units.query_rows),
            "query_rows": units.query_rows.ctypes.data,
            "slot_ends": units.slot_ends.ctypes.data,
            "slots": units.slots.ctypes.data,
            "slot_count": len(units.slots),
            "block_tokens": step.block_tokens,
            "key_heads": keys.heads,
            "group": group,
            "page_stride": keys.tiles.stride(0),
            "keys": keys.tiles.data_ptr(),
            "values": values.tiles.data_ptr(),
            "key_places": key_places.ctypes.data,
            "value_places": value_places.ctypes.data,
            "query": query.data_ptr(),
            "query_head_stride": query.stride(0),
            "query_row_stride": query.stride(1),
            "out": out.data_ptr(),
            "outs": outs,
            "sums": sums,
            "scores": scores,
            "scale": scale.ctypes.data,
            "sinks": 0 if sinks is None else sinks.data_ptr(),
        }
        arguments = np.array([given[name] for name in ARGUMENTS], dtype=np.int64)
        kernel = self._kernel(keys.at.dim, values.at.dim, rows)
        self._parallel(kernel, arguments.ctypes.data, threads)

    def _kernel(self, *sizes: int) -> int:
        """Its address."""
        if sizes not in self._kernels:
            self._kernels[sizes] = _compiled(*sizes).address
        return self._kernels[sizes]

    def _memory(self, units: PageUnits, unit_room: int, out: torch.Tensor) -> tuple[int, int, int]:
        """Addresses of the kernel's `outs`, `sums` and `scores`."""
        _, heads, dim = out.shape
        outs, sums = len(units.slots) * heads * dim, len(units.slots) * heads * 2
        needed = outs + sums + len(units.units) * unit_room
        if self._room.size < needed:
            self._room = np.empty(needed + needed // 2, dtype=np.float32)
        at = self._room.ctypes.data
        return at, at + 4 * outs, at + 4 * (outs + sums)


def _compiled(dim: int, value_dim: int, rows: int) -> Any:
    before = attend_kernel.cache_info().misses
    began = time.perf_counter()
    kernel = attend_kernel(dim, value_dim, rows)
    if attend_kernel.cache_info().misses > before:
        seconds = round(time.perf_counter() - began, 2)
        sizes = {"key_dim": dim, "value_dim": value_dim, "rows": rows}
        log.info("compiled a kernel of attention", extra={**sizes, "seconds": seconds})
    return kernel


def _rows_together(group: int, *dims: int) -> int:
    """How many queries of a key head are computed together: as many as registers hold."""
    registers = -(-max(dims) // REGISTER_FLOATS)
    most = max(1, ROW_REGISTERS // registers)
    return max(rows for rows in range(1, group + 1) if group % rows == 0 and rows <= most)


def _takes(query: torch.Tensor, keys: PagedColumns, options: Options) -> bool:
    return query.dtype == keys.tiles.dtype == torch.float32 and options.softcap is None


def _head_places(columns: PagedColumns) -> Numbers:
    """Of each head in a page, elements from the first."""
    at = columns.at
    heads = np.arange(at.heads)
    places: Numbers = (
        heads // at.heads_per_grain * at.grain_stride + heads % at.heads_per_grain * at.head_stride
    )
    return places
