"""BlockColumns: what the index knows of each block, one column per fact, one row per block.

Five million Python objects cost 300 bytes each and a garbage collection of over a second; columns
cost 80 and are never looked at by the collector. Each column is a NumPy array (for whole-column
work) and a memoryview of the same bytes (for one row: reading an int from it takes a third of the
time an array element takes).

Owned by the index, on the event loop. Views are replaced when rows are added, so nobody keeps one
across a call that may add rows.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.tier import NEVER

__all__ = ["NOWHERE", "BlockColumns"]

NOWHERE = -1
"""No parent, no child, no slab, no segment."""

_ROW_BITS = 32
_ROW_MASK = (1 << _ROW_BITS) - 1

_DTYPES: dict[str, str] = {
    "parent": "<i4",
    "first_child": "<i4",
    "next_sibling": "<i4",
    "previous_sibling": "<i4",
    "kind": "<i4",
    "pins": "<i4",
    "host_children": "<i4",
    "ssd_children": "<i4",
    "slab_page": "<i4",
    "segment": "<i4",
    "record_page": "<i4",
    "stored_bytes": "<u4",
    "next_in_segment": "<i4",
    "previous_in_segment": "<i4",
    "host_checksum": "<u8",
    "ssd_checksum": "<u8",
    "cached": "<u1",
    "admitted": "<u1",
    "settled": "<u1",
    "one_off": "<u1",
    "kept": "<u1",
    "expiry_unsaved": "<u1",
    "unit_end": "<u1",
    "expire_second": "<u4",
    "use_count": "<u4",
    "use_second": "<u4",
    "stored_by": "<u4",
    "owner": "<u4",
    "host_phase": "<u2",
    "ssd_phase": "<u2",
}


_RESET = dict.fromkeys(
    ("parent", "first_child", "next_sibling", "previous_sibling", "slab_page", "segment"), NOWHERE
) | dict.fromkeys(("next_in_segment", "previous_in_segment"), NOWHERE)
_RESET |= dict.fromkeys(
    ("pins", "host_children", "ssd_children", "admitted", "settled", "use_count", "use_second"), 0
)
_RESET |= {"unit_end": 0, "owner": 0, "kept": 0, "host_phase": 0, "ssd_phase": 0}
_RESET |= {"cached": 1, "one_off": 0, "stored_by": 0, "expiry_unsaved": 0, "expire_second": NEVER}
"""A row as it is before its block has copies, parent or children."""


class BlockColumns:
    """Row links (`NOWHERE` for none), counts and places. All start as the owner's `reset` says."""

    parent: memoryview
    """Row of the block before this one."""
    first_child: memoryview
    next_sibling: memoryview
    previous_sibling: memoryview
    kind: memoryview
    """Number of the block's namespace and size."""
    pins: memoryview
    """Leases, reservations, reads and writes in flight that hold the block."""
    host_children: memoryview
    """Children with a copy in host memory."""
    ssd_children: memoryview
    slab_page: memoryview
    """Page of the arena where the slab begins; NOWHERE when not in host memory."""
    segment: memoryview
    """Segment of the record; NOWHERE when not on the SSD."""
    record_page: memoryview
    """Page of the segment where the record begins."""
    stored_bytes: memoryview
    """Length of the record's payload as it lies on the disk."""
    next_in_segment: memoryview
    previous_in_segment: memoryview
    host_checksum: memoryview
    """Checksum of the copy in host memory; the SSD's copy may have been computed elsewhere."""
    ssd_checksum: memoryview
    cached: memoryview
    """0 from the moment the block left the index, or for a row that was never used."""

    admitted: memoryview
    """1 when the rule of admission let the block in when it was new."""
    settled: memoryview
    """1 when it is decided how the block leaves host memory (`departures.py`)."""
    one_off: memoryview
    """1 for a block that is said not to be wanted again (`one_offs.py`)."""
    kept: memoryview
    """1 for a block that a pin names (`keeping.py`)."""

    expiry_unsaved: memoryview
    """1 when the end moved since it was written down on the SSD, if it was."""
    unit_end: memoryview
    """1 for a block at which a prefix unit ends (`unit_ends.py`)."""
    expire_second: memoryview
    """Unix second from which the block may not be used; NEVER for none (`expiries.py`)."""

    use_count: memoryview
    """Acquires that matched the block, since the start; stops at the most that it holds."""
    use_second: memoryview
    """When it was stored or used last, in the index's own seconds; 0: not since the start."""
    stored_by: memoryview
    """Number of the session that stored it; 0: not since the start."""
    owner: memoryview
    """Number of the owner (`block_owners.py`); 0 for nobody."""
    host_phase: memoryview
    """0 where storage in the tier is not metered, else one more than the second of the hour at
    which hours of its own begin (`metering/rows.py`)."""
    ssd_phase: memoryview

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[Any]] = {}
        self._to_reset: list[tuple[memoryview, int]] = []
        self._capacity = 0

    def reserve(self, row_count: int, used_count: int) -> None:
        """Makes room for that many rows, keeping the first `used_count`: what was never used takes
        no memory, and would if it were copied."""
        if row_count <= self._capacity:
            return
        kept = min(used_count, self._capacity)
        for name, dtype in _DTYPES.items():
            column: NDArray[Any] = np.zeros(row_count, dtype)
            if self._capacity:
                column[:kept] = self._arrays[name][:kept]
            self._arrays[name] = column
            setattr(self, name, column.data)
        self._capacity = row_count
        self._to_reset = [(self._arrays[name].data, value) for name, value in _RESET.items()]

    def array(self, name: str) -> "NDArray[Any]":
        """The whole column, writable; rows never used hold zeros."""
        return self._arrays[name]

    def chain(
        self, next_name: str, previous_name: str, rows: NDArray[np.int64], key: NDArray[Any]
    ) -> NDArray[np.int64]:
        """Links rows of equal `key[row]` into lists; returns the first row of each.

        REQUIRES: `rows` are grouped by key, and both columns hold NOWHERE for them.
        """
        if not len(rows):
            return rows
        same = key[rows[1:]] == key[rows[:-1]]
        before, after = rows[:-1][same], rows[1:][same]
        self._arrays[next_name][before] = after.astype(np.int32)
        self._arrays[previous_name][after] = before.astype(np.int32)
        first: NDArray[np.int64] = rows[np.append(True, ~same)]
        return first

    @staticmethod
    def grouped(rows: NDArray[np.int64], key: NDArray[Any]) -> NDArray[np.int64]:
        """`rows` by `key[row]`, those of one key in their own order; neither is negative.

        Sorts the two as one number: a third of what a stable sort of the keys takes.
        """
        both = key.take(rows).astype(np.int64) << _ROW_BITS | rows
        both.sort()
        return both & _ROW_MASK

    def reset(self, row: int) -> None:
        """A row as it is before its block has copies, parent or children."""
        for column, value in self._to_reset:
            column[row] = value

    def reset_run(self, rows: NDArray[np.int64]) -> None:
        """As `reset` of each."""
        for name, value in _RESET.items():
            self._arrays[name][rows] = value

    @staticmethod
    def bytes_per_row() -> int:
        return sum(np.dtype(dtype).itemsize for dtype in _DTYPES.values())
