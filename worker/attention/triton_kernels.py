"""Two Triton kernels: attention of a step's spans over pages, and the sum of a context's parts.

A program of `attend_work` does one entry of a work list made on the host: up to `BM` rows of one
span and key head, over a run of its block table. A row is a query of one head; those of the heads
that share a key head lie side by side, so a page is read once for all of them. What is not the
whole context of its queries goes to a slot, and `sum_parts` weighs the slots. Prompts' pieces and
single queries are entries of the same list.

Invariant: no slot of a page is read that holds no key of the span, whatever is in it. A head's
elements are taken as a power of two and a rest, each padded with zeros. Scores are in powers of 2.
"""

import triton
import triton.language as tl

__all__ = ["attend_work", "sum_parts"]


@triton.jit
def _rows_of(base, at, stride, columns, rows_ok, width):
    """`[rows, columns]` of memory, zero where there is none."""
    ok = rows_ok[:, None] & (columns[None, :] < width)
    return tl.load(base + at[:, None] * stride + columns[None, :], mask=ok, other=0.0)


@triton.jit
def attend_work(
    Q, K, V, OUT, PART, PART_SUM, SINKS,
    WORK, SPANS, TABLE,
    scale, softcap, window,
    q_token, q_head,
    k_page, k_grain, k_head, v_page, v_grain, v_head,
    o_token, o_head, table_row, heads,
    GROUP: tl.constexpr, K_EACH: tl.constexpr, V_EACH: tl.constexpr,
    D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    DV: tl.constexpr, DV1: tl.constexpr, DV2: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, PAGE: tl.constexpr,
    SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, HAS_SINKS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    work = tl.program_id(0)
    kv_head = tl.program_id(1)
    span = tl.load(WORK + work * 5)
    first_row = tl.load(WORK + work * 5 + 1)
    first_page = tl.load(WORK + work * 5 + 2)
    end_page = tl.load(WORK + work * 5 + 3)
    slot = tl.load(WORK + work * 5 + 4)
    q_start = tl.load(SPANS + span * 3)
    q_count = tl.load(SPANS + span * 3 + 1)
    context = tl.load(SPANS + span * 3 + 2)

    row = first_row + tl.arange(0, BM)
    query = row // GROUP
    head = kv_head * GROUP + row % GROUP
    row_ok = query < q_count
    position = context - q_count + query

    d1 = tl.arange(0, D1)
    d2 = D1 + tl.arange(0, D2)
    e1 = tl.arange(0, DV1)
    e2 = DV1 + tl.arange(0, DV2)
    q_at = (q_start + query).to(tl.int64) * q_token + head * q_head
    q1 = _rows_of(Q, q_at, 1, d1, row_ok, D)
    if D > D1:
        q2 = _rows_of(Q, q_at, 1, d2, row_ok, D)

    top = tl.full([BM], -1e30, tl.float32)
    total = tl.zeros([BM], tl.float32)
    sum1 = tl.zeros([BM, DV1], tl.float32)
    sum2 = tl.zeros([BM, DV2], tl.float32)
    k_base = K + (kv_head // K_EACH).to(tl.int64) * k_grain + (kv_head % K_EACH) * k_head
    v_base = V + (kv_head // V_EACH).to(tl.int64) * v_grain + (kv_head % V_EACH) * v_head
    token = tl.arange(0, BN)

    for at in range(first_page, end_page):
        page = tl.load(TABLE + span * table_row + at).to(tl.int64)
        key = at * PAGE + token
        key_ok = (token < PAGE) & (key < context)
        k_page_base = k_base + page * k_page
        k1 = _rows_of(k_page_base, token, D, d1, key_ok, D)
        score = tl.dot(q1, tl.trans(k1), input_precision=PRECISION)
        if D > D1:
            k2 = _rows_of(k_page_base, token, D, d2, key_ok, D)
            score += tl.dot(q2, tl.trans(k2), input_precision=PRECISION)
        score = score * scale
        if SOFTCAP:
            # tanh by exp2; both ends are right where it overflows.
            squeezed = 1.0 - 2.0 / (1.0 + tl.exp2(score * (2.0 * 1.4426950408889634) / softcap))
            score = softcap * squeezed
        score = score * 1.4426950408889634
        seen = key_ok[None, :] & (key[None, :] <= position[:, None])
        if WINDOW:
            seen = seen & (key[None, :] > position[:, None] - window)
        score = tl.where(seen, score, -1e30)
        higher = tl.maximum(top, tl.max(score, 1))
        weight = tl.where(seen, tl.exp2(score - higher[:, None]), 0.0)
        fade = tl.exp2(top - higher)
        total = total * fade + tl.sum(weight, 1)
        v_page_base = v_base + page * v_page
        v1 = _rows_of(v_page_base, token, DV, e1, key_ok, DV)
        low = weight.to(v1.dtype)
        sum1 = sum1 * fade[:, None] + tl.dot(low, v1, input_precision=PRECISION)
        if DV > DV1:
            v2 = _rows_of(v_page_base, token, DV, e2, key_ok, DV)
            sum2 = sum2 * fade[:, None] + tl.dot(low, v2, input_precision=PRECISION)
        top = higher

    if slot >= 0:
        part_at = slot.to(tl.int64) * heads + head
        tl.store(PART_SUM + part_at * 2, top, mask=row_ok)
        tl.store(PART_SUM + part_at * 2 + 1, total, mask=row_ok)
        p_at = PART + part_at[:, None] * DV
        tl.store(p_at + e1[None, :], sum1, mask=row_ok[:, None] & (e1[None, :] < DV))
        if DV > DV1:
            tl.store(p_at + e2[None, :], sum2, mask=row_ok[:, None] & (e2[None, :] < DV))
    else:
        if HAS_SINKS:
            sink = tl.load(SINKS + head).to(tl.float32) * 1.4426950408889634
            higher = tl.maximum(top, sink)
            fade = tl.exp2(top - higher)
            total = total * fade + tl.exp2(sink - higher)
            sum1 = sum1 * fade[:, None]
            sum2 = sum2 * fade[:, None]
        total = tl.where(row_ok, total, 1.0)  # rows past the span may have seen nothing
        o_at = OUT + (q_start + query).to(tl.int64)[:, None] * o_token + head[:, None] * o_head
        kind = OUT.dtype.element_ty
        ok = row_ok[:, None] & (e1[None, :] < DV)
        tl.store(o_at + e1[None, :], (sum1 / total[:, None]).to(kind), mask=ok)
        if DV > DV1:
            ok = row_ok[:, None] & (e2[None, :] < DV)
            tl.store(o_at + e2[None, :], (sum2 / total[:, None]).to(kind), mask=ok)


@triton.jit
def sum_parts(
    PART, PART_SUM, OUT, SINKS, SUMS, o_token, o_head, heads,
    DV: tl.constexpr, WIDTH: tl.constexpr, HAS_SINKS: tl.constexpr,
):  # fmt: skip
    """A query and head: the slots `[first, first + count)` of its context's parts."""
    entry = tl.program_id(0)
    head = tl.program_id(1)
    query = tl.load(SUMS + entry * 3)
    first = tl.load(SUMS + entry * 3 + 1)
    count = tl.load(SUMS + entry * 3 + 2)
    column = tl.arange(0, WIDTH)
    top = tl.full([1], -1e30, tl.float32)
    total = tl.zeros([1], tl.float32)
    if HAS_SINKS:
        top = tl.load(SINKS + head + tl.zeros([1], tl.int32)).to(tl.float32) * 1.4426950408889634
        total = tl.full([1], 1.0, tl.float32)
    out = tl.zeros([WIDTH], tl.float32)
    for part_number in range(count):
        at = (first + part_number) * heads + head
        part_top = tl.load(PART_SUM + at * 2)
        higher = tl.maximum(top, part_top)
        fade = tl.exp2(top - higher)
        share = tl.exp2(part_top - higher)
        total = total * fade + tl.load(PART_SUM + at * 2 + 1) * share
        values = tl.load(PART + at * DV + column, mask=column < DV, other=0.0)
        out = out * fade + values * share
        top = higher
    o_at = OUT + query.to(tl.int64) * o_token + head * o_head
    tl.store(o_at + column, (out / total).to(OUT.dtype.element_ty), mask=column < DV)
