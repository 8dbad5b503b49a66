"""The two loops over a page's tokens that attention is made of, written as vectors for LLVM.

Left to itself the compiler reads a token's key again for each query, and makes sure for every eight
tokens that memory does not overlap. Here several queries' numbers stay in registers, and a token is
read once for all of them. Sums are in one order for a processor. Any thread.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["REGISTER_FLOATS", "score_loop", "weigh_loop"]

REGISTER_FLOATS = 16
"""Of the widest registers there are."""
LINE_BYTES = 64
FLOAT_BYTES = 4

INT, FLOAT, BYTE = ir.IntType(64), ir.FloatType(), ir.IntType(8)

Loop = Callable[..., Any]


def score_loop(dim: int, ahead_bytes: int, rows: int) -> Loop:
    """An intrinsic `(keys, query, query_stride, scale, scores, scores_stride, largest, count,
    ahead)`: scores of `rows` queries with `count` tokens, and the largest of each beside those
    that are in `largest`. Arguments but `scale` are addresses, bytes and counts; unless `ahead` is
    0, so many bytes a token are asked for from there on."""

    @intrinsic
    def score(
        context: Any,
        keys: Any,
        query: Any,
        query_stride: Any,
        scale: Any,
        scores: Any,
        scores_stride: Any,
        largest: Any,
        count: Any,
        ahead: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            keys, query, query_stride, scale, scores, scores_stride, largest, count, ahead = given
            queries = [
                _load(builder, _row(builder, query, query_stride, r), dim) for r in range(rows)
            ]
            places = [_address(builder, largest, INT(r * FLOAT_BYTES)) for r in range(rows)]
            tops = [cgutils.alloca_once(builder, FLOAT) for _ in range(rows)]
            for place, top in zip(places, tops, strict=True):
                builder.store(_load(builder, place, 1), top)
            targets = [_row(builder, scores, scores_stride, r) for r in range(rows)]
            wanted = builder.icmp_signed("!=", ahead, INT(0))
            with cgutils.for_range(builder, count) as loop:
                token = loop.index
                _ask(builder, wanted, ahead, token, ahead_bytes)
                key = _load(builder, _address(builder, keys, token, dim * FLOAT_BYTES), dim)
                for own, top, target in zip(queries, tops, targets, strict=True):
                    found = _added(builder, builder.fmul(own, key, flags=["reassoc", "contract"]))
                    found = builder.fmul(found, scale)
                    _store(builder, found, _address(builder, target, token, FLOAT_BYTES))
                    before = builder.load(top)
                    larger = builder.fcmp_ordered(">", found, before)
                    builder.store(builder.select(larger, found, before), top)
            for place, top in zip(places, tops, strict=True):
                _store(builder, builder.load(top), place)
            return context.get_dummy_value()

        numbers = [types.int64] * 9
        numbers[3] = types.float32
        return types.none(*numbers), generate

    return score


def weigh_loop(dim: int, ahead_bytes: int, rows: int) -> Loop:
    """An intrinsic `(values, shares, shares_stride, fades, out, count, ahead)`: `rows` of `out`,
    one behind the other, are multiplied by their `fades` and get `count` tokens' values by their
    shares. Arguments as those of `score_loop`."""

    @intrinsic
    def weigh(
        context: Any,
        values: Any,
        shares: Any,
        shares_stride: Any,
        fades: Any,
        out: Any,
        count: Any,
        ahead: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            values, shares, shares_stride, fades, out, count, ahead = given
            outs = [_address(builder, out, INT(r * dim * FLOAT_BYTES)) for r in range(rows)]
            sources = [_row(builder, shares, shares_stride, r) for r in range(rows)]
            sums = [cgutils.alloca_once(builder, _kind(dim)) for _ in range(rows)]
            for row, (place, found) in enumerate(zip(outs, sums, strict=True)):
                fade = _load(builder, _address(builder, fades, INT(row * FLOAT_BYTES)), 1)
                faded = builder.fmul(_load(builder, place, dim), _everywhere(builder, fade, dim))
                builder.store(faded, found)
            wanted = builder.icmp_signed("!=", ahead, INT(0))
            with cgutils.for_range(builder, count) as loop:
                token = loop.index
                _ask(builder, wanted, ahead, token, ahead_bytes)
                value = _load(builder, _address(builder, values, token, dim * FLOAT_BYTES), dim)
                for source, found in zip(sources, sums, strict=True):
                    share = _load(builder, _address(builder, source, token, FLOAT_BYTES), 1)
                    part = builder.fmul(_everywhere(builder, share, dim), value, flags=["contract"])
                    builder.store(
                        builder.fadd(builder.load(found), part, flags=["contract"]), found
                    )
            for place, found in zip(outs, sums, strict=True):
                _store(builder, builder.load(found), place)
            return context.get_dummy_value()

        return types.none(*[types.int64] * 7), generate

    return weigh


def _kind(count: int) -> Any:
    return FLOAT if count == 1 else ir.VectorType(FLOAT, count)


def _address(builder: Any, begin: Any, index: Any, step: int = 1) -> Any:
    return builder.add(begin, builder.mul(index, INT(step)))


def _row(builder: Any, begin: Any, stride: Any, row: int) -> Any:
    return builder.add(begin, builder.mul(stride, INT(row)))


def _load(builder: Any, address: Any, count: int) -> Any:
    place = builder.inttoptr(address, _kind(count).as_pointer())
    return builder.load(place, align=FLOAT_BYTES)


def _store(builder: Any, number: Any, address: Any) -> None:
    place = builder.inttoptr(address, number.type.as_pointer())
    builder.store(number, place, align=FLOAT_BYTES)


def _everywhere(builder: Any, number: Any, count: int) -> Any:
    if count == 1:
        return number
    kind = _kind(count)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), number, ir.IntType(32)(0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), count), [0] * count)
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), zeros)


def _added(builder: Any, vector: Any) -> Any:
    """The sum of its numbers, in whatever order is fastest."""
    if vector.type is FLOAT:
        return vector
    kind = ir.FunctionType(FLOAT, [FLOAT, vector.type])
    name = f"llvm.vector.reduce.fadd.v{vector.type.count}f32"
    called = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(called, [FLOAT(-0.0), vector], fastmath=["reassoc"])


def _ask(builder: Any, wanted: Any, begin: Any, token: Any, size: int) -> None:
    """The processor begins to read what will be wanted; an address that is none does no harm."""
    number, pointer = ir.IntType(32), BYTE.as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
    called = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    with builder.if_then(wanted):
        at = _address(builder, begin, token, size)
        for line in range(0, size, LINE_BYTES):
            place = builder.inttoptr(builder.add(at, INT(line)), pointer)
            # To read, to keep, data.
            builder.call(called, [place, number(0), number(3), number(1)])
