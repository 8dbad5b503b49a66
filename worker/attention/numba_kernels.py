"""Attention of single queries over pages, compiled at start for this processor.

    attend   each thread takes one unit of work after the other: some pages, and the queries that
             see them. Of each page, key head and query: scores, the largest, the shares, the
             weighed values; what a unit gives a query is kept with its largest score and its sum.
             Who ends a query's last unit weighs what its units gave

A page's keys are asked for from memory while the values before them are weighed, and the other way
round: a page is read at the speed of memory, once for all queries that see it.

Invariant: only tokens that a unit names are read, so unused slots may hold anything; a number that
is none, NaN or infinite, stays none in the outcome. So the compiler may order sums anew, but may
not take it that there are no such numbers. Powers are of two: scores come multiplied by log2(e).
Pure but for what `Arguments` points to; called by several threads at once, without the interpreter
lock.
"""

import functools
import math
from typing import Any

import numpy as np
from numba import carray, cfunc, njit, types

from worker.attention.vector_loops import score_loop, weigh_loop
from worker.kernel_memory import add_shared, pointer_to

__all__ = ["ARGUMENTS", "LOWEST", "attend_kernel"]

ARGUMENTS = (
    "next_unit",  # address of: the unit that is taken next, and of each query its units to come
    "unit_count",
    "units",  # address of [units, 5]: first entry, end; first holder, end; first slot
    "entries",  # address of [entries, 3]: page, first token of it, end
    "entry_count",
    "holders",  # address of [holders]: queries
    "holder_count",
    "query_count",
    "query_rows",  # address of [queries]: rows of the step
    "slot_ends",  # address of [queries + 1]: where each one's slots begin in the next
    "slots",  # address of [slots]
    "slot_count",
    "block_tokens",
    "key_heads",
    "group",
    "page_stride",  # elements
    "keys",  # address of the layer's keys in page 0
    "values",
    "key_places",  # address of [key heads]: of each head in a page, elements
    "value_places",
    "query",  # address, dim 1
    "query_head_stride",  # elements
    "query_row_stride",
    "out",  # address of [rows, heads, value dim]
    "outs",  # address of [slots, key heads, group, value dim]
    "sums",  # address of [slots, key heads, group, 2]: the largest score, and the sum beside it
    "scores",  # address of [units, rows * (3 * block tokens + 2)]: memory to work in
    "scale",  # address of one number
    "sinks",  # address of [heads], or 0
)
"""What the kernel gets: one int64 each. Sizes are of numbers; numbers are float32, others int64."""

(
    NEXT_UNIT,
    UNIT_COUNT,
    UNITS,
    ENTRIES,
    ENTRY_COUNT,
    HOLDERS,
    HOLDER_COUNT,
    QUERY_COUNT,
    QUERY_ROWS,
    SLOT_ENDS,
    SLOTS,
    SLOT_COUNT,
    BLOCK_TOKENS,
    KEY_HEADS,
    GROUP,
    PAGE_STRIDE,
    KEYS,
    VALUES,
    KEY_PLACES,
    VALUE_PLACES,
    QUERY,
    QUERY_HEAD_STRIDE,
    QUERY_ROW_STRIDE,
    OUT,
    OUTS,
    SUMS,
    SCORES,
    SCALE,
    SINKS,
) = range(len(ARGUMENTS))

LOWEST = np.float32(-3e38)
"""Below every score: minus infinity less itself would be no number."""

FLOAT_BYTES = 4

ORDER_FREE = {"reassoc", "contract", "nsz", "arcp"}
IN_ORDER = {"contract"}

POWERS = tuple(np.float32(math.log(2) ** n / math.factorial(n)) for n in range(8))
"""Of 2**f for f in [-1/2, 1/2]: off by less than 1e-8."""
MAGIC = np.float32(1.5 * 2**23)
"""A number that is added to another leaves it rounded, in the low bits of the sum."""
EXPONENT = np.int32(127 << 23)
FLOOR = np.float32(-126)
"""The smallest exponent of ordinary numbers."""


@njit(fastmath=IN_ORDER, error_model="numpy")
def _shares(scores, largest, rests, shares, bits, count):
    """`shares` become 2 ** (scores - largest); `bits` are their bits. Every loop in vectors."""
    for t in range(count):
        x = scores[t] - largest
        # So written, what is no number stays none.
        x = FLOOR if x < FLOOR else x
        whole = x + MAGIC
        f = x - (whole - MAGIC)
        shares[t] = whole
        r = POWERS[6] + f * POWERS[7]
        r = POWERS[3] + f * (POWERS[4] + f * (POWERS[5] + f * r))
        rests[t] = POWERS[0] + f * (POWERS[1] + f * (POWERS[2] + f * r))
    for t in range(count):
        bits[t] = (bits[t] << 23) + EXPONENT
    for t in range(count):
        shares[t] *= rests[t]


@njit(fastmath=ORDER_FREE, error_model="numpy")
def _sum(numbers, count):
    found = np.float32(0)
    for t in range(count):
        found += numbers[t]
    return found


@functools.lru_cache(maxsize=64)
def attend_kernel(dim: int, value_dim: int, rows: int) -> Any:
    """A `numba.cfunc` of `ARGUMENTS` for heads of these sizes, and groups of a multiple of `rows`,
    which are computed together. Takes a second or two, once.

    A thread calls it to take part in the work; the outcome is there when all have returned."""

    score = score_loop(dim, value_dim * FLOAT_BYTES, rows)
    weigh = weigh_loop(value_dim, dim * FLOAT_BYTES, rows)

    @njit(fastmath=ORDER_FREE, error_model="numpy")
    def attend_unit(a, index):
        """What one unit gives its queries."""
        unit = carray(pointer_to(a[UNITS]), (a[UNIT_COUNT], 5), np.int64)[index]
        key_heads, group, tokens = a[KEY_HEADS], a[GROUP], a[BLOCK_TOKENS]
        entries = carray(pointer_to(a[ENTRIES]), (a[ENTRY_COUNT], 3), np.int64)
        holders = carray(pointer_to(a[HOLDERS]), (a[HOLDER_COUNT],), np.int64)
        queries = carray(pointer_to(a[QUERY_ROWS]), (a[QUERY_COUNT],), np.int64)
        key_places = carray(pointer_to(a[KEY_PLACES]), (key_heads,), np.int64)
        value_places = carray(pointer_to(a[VALUE_PLACES]), (key_heads,), np.int64)
        outs = carray(pointer_to(a[OUTS]), (a[SLOT_COUNT], key_heads, group, value_dim), np.float32)
        sums = carray(pointer_to(a[SUMS]), (a[SLOT_COUNT], key_heads, group, 2), np.float32)
        # Scores, what is left of them below a power of two, and shares; then two numbers a row.
        part = FLOAT_BYTES * rows * tokens
        scores_at = a[SCORES] + index * (3 * part + FLOAT_BYTES * 2 * rows)
        shares_at, largest_at = scores_at + 2 * part, scores_at + 3 * part
        fades_at = largest_at + FLOAT_BYTES * rows
        room = carray(pointer_to(scores_at), (3, rows, tokens), np.float32)
        bits = carray(pointer_to(shares_at), (rows, tokens), np.int32)
        largest = carray(pointer_to(largest_at), (rows,), np.float32)
        fades = carray(pointer_to(fades_at), (rows,), np.float32)
        scale = carray(pointer_to(a[SCALE]), (1,), np.float32)[0]
        first, end, first_holder, end_holder, slot = unit[0], unit[1], unit[2], unit[3], unit[4]
        for head in range(key_heads):
            for holder in range(end_holder - first_holder):
                for row in range(group):
                    sums[slot + holder, head, row, 0] = LOWEST
                    sums[slot + holder, head, row, 1] = np.float32(0)
                    out = outs[slot + holder, head, row]
                    for d in range(value_dim):
                        out[d] = np.float32(0)
            for entry in range(first, end):
                begin = entries[entry, 1]
                count = entries[entry, 2] - begin
                place = entries[entry, 0] * a[PAGE_STRIDE]
                keys_at = a[KEYS] + FLOAT_BYTES * (place + key_places[head] + begin * dim)
                values_at = a[VALUES] + FLOAT_BYTES * (
                    place + value_places[head] + begin * value_dim
                )
                next_at = np.int64(0)
                if entry + 1 < end:
                    next_at = a[KEYS] + FLOAT_BYTES * (
                        entries[entry + 1, 0] * a[PAGE_STRIDE]
                        + key_places[head]
                        + entries[entry + 1, 1] * dim
                    )
                for holder in range(end_holder - first_holder):
                    query_at = a[QUERY] + FLOAT_BYTES * (
                        head * group * a[QUERY_HEAD_STRIDE]
                        + queries[holders[first_holder + holder]] * a[QUERY_ROW_STRIDE]
                    )
                    for first_row in range(0, group, rows):
                        # Once is enough, for all queries.
                        ahead = holder == 0 and first_row == 0
                        outs_at = a[OUTS] + FLOAT_BYTES * value_dim * (
                            ((slot + holder) * key_heads + head) * group + first_row
                        )
                        kept = sums[slot + holder, head, first_row : first_row + rows]
                        for row in range(rows):
                            largest[row] = kept[row, 0]
                        score(
                            keys_at,
                            query_at + FLOAT_BYTES * first_row * a[QUERY_HEAD_STRIDE],
                            FLOAT_BYTES * a[QUERY_HEAD_STRIDE],
                            scale,
                            scores_at,
                            FLOAT_BYTES * tokens,
                            largest_at,
                            count,
                            values_at if ahead else 0,
                        )
                        for row in range(rows):
                            top = largest[row]
                            _shares(room[0, row], top, room[1, row], room[2, row], bits[row], count)
                            fade = np.float32(2) ** (kept[row, 0] - top)
                            kept[row, 0] = top
                            kept[row, 1] = kept[row, 1] * fade + _sum(room[2, row], count)
                            fades[row] = fade
                        weigh(
                            values_at,
                            shares_at,
                            FLOAT_BYTES * tokens,
                            fades_at,
                            outs_at,
                            count,
                            next_at if ahead else 0,
                        )

    @njit(fastmath=ORDER_FREE, error_model="numpy")
    def weighed(a, query):
        """The outcome of a query whose units have ended."""
        key_heads, group = a[KEY_HEADS], a[GROUP]
        queries = carray(pointer_to(a[QUERY_ROWS]), (a[QUERY_COUNT],), np.int64)
        ends = carray(pointer_to(a[SLOT_ENDS]), (a[QUERY_COUNT] + 1,), np.int64)
        slots = carray(pointer_to(a[SLOTS]), (a[SLOT_COUNT],), np.int64)
        outs = carray(pointer_to(a[OUTS]), (a[SLOT_COUNT], key_heads, group, value_dim), np.float32)
        sums = carray(pointer_to(a[SUMS]), (a[SLOT_COUNT], key_heads, group, 2), np.float32)
        sinks = carray(pointer_to(a[SINKS]), (key_heads * group,), np.float32)
        row_bytes = FLOAT_BYTES * key_heads * group * value_dim
        out = carray(
            pointer_to(a[OUT] + queries[query] * row_bytes),
            (key_heads * group, value_dim),
            np.float32,
        )
        for head in range(key_heads):
            for row in range(group):
                target = out[head * group + row]
                largest = sinks[head * group + row] if a[SINKS] else LOWEST
                for at in range(ends[query], ends[query + 1]):
                    largest = max(sums[slots[at], head, row, 0], largest)
                total = np.float32(0)
                if a[SINKS]:
                    total = np.float32(2) ** (sinks[head * group + row] - largest)
                for d in range(value_dim):
                    target[d] = np.float32(0)
                for at in range(ends[query], ends[query + 1]):
                    share = np.float32(2) ** (sums[slots[at], head, row, 0] - largest)
                    total += share * sums[slots[at], head, row, 1]
                    found = outs[slots[at], head, row]
                    for d in range(value_dim):
                        target[d] += share * found[d]
                for d in range(value_dim):
                    target[d] /= total

    @cfunc(types.void(types.CPointer(types.int64)), fastmath=ORDER_FREE, error_model="numpy")
    def attend(arguments):
        a = carray(arguments, (len(ARGUMENTS),))
        units = carray(pointer_to(a[UNITS]), (a[UNIT_COUNT], 5), np.int64)
        holders = carray(pointer_to(a[HOLDERS]), (a[HOLDER_COUNT],), np.int64)
        while True:
            taken = add_shared(a[NEXT_UNIT], 1)
            if taken >= a[UNIT_COUNT]:
                break
            attend_unit(a, taken)
            for holder in range(units[taken, 2], units[taken, 3]):
                query = holders[holder]
                if add_shared(a[NEXT_UNIT] + 8 + 8 * query, -1) == 1:
                    weighed(a, query)

    return attend
