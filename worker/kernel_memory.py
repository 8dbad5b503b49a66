"""How kernels that are compiled at start reach memory: by addresses, and by counters that threads
share. For code inside of them; pure.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["add_shared", "pointer_to"]


@intrinsic
def pointer_to(context: Any, address: Any) -> Any:
    """A pointer of an int64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@intrinsic
def add_shared(context: Any, address: Any, number: Any) -> Any:
    """Adds to a shared number and returns what it was. What was written before is seen by whoever
    adds after."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", place, arguments[1], "acq_rel")

    return types.int64(types.int64, types.int64), generate
