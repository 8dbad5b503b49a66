"""Growable columns: one number a slot, in one buffer, without an object each.

A NumPy view of a column serves bulk work; it must be gone before the column grows, so none is kept.
"""

from array import array
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Column", "grow", "view"]

Column: TypeAlias = "array[int]"

GROWTH_MIN = 64
GROWTH_SHIFT = 4
"""A column grows by a sixteenth: few copies, little that lies unused."""


def grow(columns: tuple[Column, ...], slot: int) -> None:
    """Makes every column long enough to have a row for `slot`; new rows are zero."""
    for column in columns:
        missing = slot + 1 - len(column)
        if missing > 0:
            more = max(missing, len(column) >> GROWTH_SHIFT, GROWTH_MIN)
            column.frombytes(bytes(more * column.itemsize))


def view(column: Column) -> NDArray[Any]:
    """The column as NumPy sees it, writable, over the same buffer."""
    return np.frombuffer(column, dtype=np.dtype(column.typecode))
