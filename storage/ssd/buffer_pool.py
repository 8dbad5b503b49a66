"""BufferPool: aligned memory that is used again and again, a little of it kept.

Fresh memory costs a page fault for every page and giving it back another round: several times what
encrypting into it takes. Invariant: at most `kept_bytes_max` lie idle; nobody has memory that was
given back. Event loop only.
"""

from storage.ssd.files import aligned_buffer

__all__ = ["BufferPool"]


class BufferPool:
    """Buffers by size."""

    def __init__(self, kept_bytes_max: int) -> None:
        self._kept_bytes_max = kept_bytes_max
        self._kept: dict[int, list[memoryview]] = {}
        self.kept_bytes = 0

    def take(self, size_bytes: int) -> memoryview:
        """Page-aligned, of whatever was in it."""
        kept = self._kept.get(size_bytes)
        if not kept:
            return aligned_buffer(size_bytes)
        self.kept_bytes -= size_bytes
        return kept.pop()

    def give_back(self, buffer: memoryview) -> None:
        """The caller has no view of it any more."""
        size = buffer.nbytes
        others = self._kept.keys() - {size}
        if self.kept_bytes + size > self._kept_bytes_max and others:
            # Blocks have another size now: what is kept of older ones is in the way.
            self._kept = {size: self._kept.get(size, [])}
            self.kept_bytes = size * len(self._kept[size])
        if self.kept_bytes + size <= self._kept_bytes_max:
            self._kept.setdefault(size, []).append(buffer)
            self.kept_bytes += size
