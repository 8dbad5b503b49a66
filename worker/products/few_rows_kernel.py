"""The product of a few rows with a matrix of weights, compiled at start for this processor.

    product   each thread takes a run of the weights' rows after the other; a row of weights is read
              once for all rows of the input, whose sums with it stay in registers

Weights are used as they come from memory, and what comes next is asked for ahead. Torch's product
packs them first, as one of many rows has to: for few that costs more than the product itself.

Invariant: a sum is in one order for a processor, whatever rows there are beside it and whoever
computes it. A number that is none stays none. Pure but for what `ARGUMENTS` point to; called by
several threads at once, without the interpreter lock.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import carray, cfunc, types
from numba.core import cgutils
from numba.extending import intrinsic

from worker.kernel_memory import add_shared, pointer_to

__all__ = ["ARGUMENTS", "LINE_FLOATS", "product_kernel"]

ARGUMENTS = (
    "next_run",  # address of one int64: the run that is taken next
    "run_count",
    "run_outputs",  # outputs of a run; the last may have fewer
    "output_count",
    "input_count",  # a multiple of `LINE_FLOATS`
    "row_count",
    "weights",  # address of [outputs, inputs]
    "bias",  # address of [outputs], or 0
    "input",  # address of [rows, inputs]
    "output",  # address of [rows, outputs]
)
"""What the kernel gets: one int64 each. Numbers are float32, one row behind the other."""

(
    NEXT_RUN,
    RUN_COUNT,
    RUN_OUTPUTS,
    OUTPUT_COUNT,
    INPUT_COUNT,
    ROW_COUNT,
    WEIGHTS,
    BIAS,
    INPUT,
    OUTPUT,
) = range(len(ARGUMENTS))

ROWS_TOGETHER = 8
"""Their sums stay in registers. Of fewer rows the last is computed again in the place of others:
weights come no sooner for less work."""

FLOAT_BYTES = 4
LINE_BYTES = 64
LINE_FLOATS = LINE_BYTES // FLOAT_BYTES
AHEAD_BYTES = 1024
"""So far before they are used weights are asked for."""

INT, FLOAT, BYTE = ir.IntType(64), ir.FloatType(), ir.IntType(8)


@functools.cache
def product_kernel() -> Any:
    """A `numba.cfunc` of `ARGUMENTS`. Takes a second, once.

    A thread calls it to take part in the work; the outcome is there when all have returned."""

    sums_of = _sums(ROWS_TOGETHER)

    @cfunc(types.void(types.CPointer(types.int64)), error_model="numpy")
    def product(arguments):
        a = carray(arguments, (len(ARGUMENTS),))
        outputs, rows = a[OUTPUT_COUNT], a[ROW_COUNT]
        row_bytes, out_bytes = FLOAT_BYTES * a[INPUT_COUNT], FLOAT_BYTES * outputs
        bias = carray(pointer_to(a[BIAS]), (outputs,), np.float32)
        while True:
            run = add_shared(a[NEXT_RUN], 1)
            if run >= a[RUN_COUNT]:
                break
            first = run * a[RUN_OUTPUTS]
            for output in range(first, min(first + a[RUN_OUTPUTS], outputs)):
                begin = bias[output] if a[BIAS] else np.float32(0)
                for row in range(0, rows, ROWS_TOGETHER):
                    sums_of(
                        a[WEIGHTS] + output * row_bytes,
                        a[INPUT] + row * row_bytes,
                        row_bytes,
                        min(ROWS_TOGETHER, rows - row) - 1,
                        begin,
                        a[OUTPUT] + row * out_bytes + FLOAT_BYTES * output,
                        out_bytes,
                    )

    return product


def _sums(rows: int) -> Callable[..., Any]:
    """An intrinsic `(weights, input, row_bytes, last, begin, output, output_bytes)`: each of the
    input's rows times one row of weights, plus `begin`. Rows behind the `last` are that one.
    Arguments but `begin` are addresses, bytes and counts."""

    @intrinsic
    def sums_of(
        context: Any,
        weights: Any,
        input_: Any,
        row_bytes: Any,
        last: Any,
        begin: Any,
        output: Any,
        output_bytes: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            weights, input_, row_bytes, last, begin, output, output_bytes = given
            places = [
                builder.select(builder.icmp_signed("<", INT(r), last), INT(r), last)
                for r in range(rows)
            ]
            inputs = [builder.add(input_, builder.mul(at, row_bytes)) for at in places]
            kind = ir.VectorType(FLOAT, _register_floats())
            sums = [cgutils.alloca_once(builder, kind) for _ in range(rows)]
            for found in sums:
                builder.store(ir.Constant(kind, [0.0] * kind.count), found)
            lines = builder.sdiv(row_bytes, INT(LINE_BYTES))
            with cgutils.for_range(builder, lines) as loop:
                line = builder.mul(loop.index, INT(LINE_BYTES))
                _ask(builder, builder.add(weights, builder.add(line, INT(AHEAD_BYTES))))
                for part in range(0, LINE_BYTES, FLOAT_BYTES * kind.count):
                    at = builder.add(line, INT(part))
                    weight = _load(builder, builder.add(weights, at), kind)
                    for row, found in zip(inputs, sums, strict=True):
                        number = _load(builder, builder.add(row, at), kind)
                        product = builder.fmul(weight, number, flags=["contract"])
                        added = builder.fadd(builder.load(found), product, flags=["contract"])
                        builder.store(added, found)
            for at, found in zip(places, sums, strict=True):
                place = builder.add(output, builder.mul(at, output_bytes))
                number = builder.fadd(_added(builder, builder.load(found)), begin)
                builder.store(number, builder.inttoptr(place, FLOAT.as_pointer()), align=4)
            return context.get_dummy_value()

        numbers = [types.int64] * 7
        numbers[4] = types.float32
        return types.none(*numbers), generate

    return sums_of


def _register_floats() -> int:
    """Of this processor."""
    return 16 if binding.get_host_cpu_features().get("avx512f") else 8


def _load(builder: Any, address: Any, kind: Any) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=FLOAT_BYTES)


def _added(builder: Any, vector: Any) -> Any:
    kind = ir.FunctionType(FLOAT, [FLOAT, vector.type])
    name = f"llvm.vector.reduce.fadd.v{vector.type.count}f32"
    called = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(called, [FLOAT(-0.0), vector], fastmath=["reassoc"])


def _ask(builder: Any, address: Any) -> None:
    """The processor begins to read there; an address that is none does no harm."""
    number, pointer = ir.IntType(32), BYTE.as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
    called = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    # To read, to keep, data.
    builder.call(called, [builder.inttoptr(address, pointer), number(0), number(3), number(1)])
