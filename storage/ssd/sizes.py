"""What sizes an SSD tier may have. Pure, any thread."""

from storage.errors import CapacityError
from storage.ssd.format import SEGMENT_COUNT_MAX
from storage.tier import PAGE_BYTES

__all__ = ["check_sizes"]

SEGMENT_COUNT_MIN = 4
"""One open, one free to re-log into, and two for the owner to choose between."""


def check_sizes(capacity_bytes: int, segment_bytes: int, reader_threads: int) -> None:
    """Raises CapacityError."""
    if segment_bytes < 2 * PAGE_BYTES or segment_bytes % PAGE_BYTES:
        raise CapacityError(
            f"segment_bytes must be a multiple of {PAGE_BYTES} and at least two of it,"
            f" not {segment_bytes}"
        )
    count = capacity_bytes // segment_bytes
    if not SEGMENT_COUNT_MIN <= count <= SEGMENT_COUNT_MAX:
        raise CapacityError(
            f"an SSD tier needs {SEGMENT_COUNT_MIN} to {SEGMENT_COUNT_MAX} segments and"
            f" {capacity_bytes} bytes hold {count} of {segment_bytes}: change capacity_bytes or"
            " segment_bytes"
        )
    if reader_threads < 1:
        raise CapacityError("reader_threads must be at least 1")
