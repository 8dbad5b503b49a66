"""HostArena: the memory that blocks live in, one shared mapping for service and clients.

An anonymous memory file (memfd) is mapped once, every page touched at start (a first touch costs
several times a copy), and sealed against resizing, so that no client that gets the descriptor can
shrink it under the others. Clients map the same file; a slab is an offset into it.

Invariant: bytes in use never pass `capacity_bytes`. The arena says which slabs are free; whether a
slab may be freed (leases, reservations, writes in flight) is its owner's to know. Allocation on the
event loop only; views may be read and written from any thread.
"""

import fcntl
import os
from collections.abc import Sequence

from kvtier.memory import huge_bytes, mapped
from storage.errors import CapacityError
from storage.host.pages import take_pages
from storage.host.slab import SlabAllocator, SlabClass
from storage.tier import PAGE_BYTES, Slab

__all__ = ["EXTENT_BYTES", "HostArena"]

EXTENT_BYTES = 64 * 1024 * 1024
"""Largest block an arena takes by default; one extent is 1/16 of a GiB."""

EXTENTS_MIN = 4
"""A small arena gets smaller extents, so that several block sizes can share it."""


class HostArena:
    """A page-aligned, pre-touched arena and its slabs. `close` it at the end."""

    def __init__(self, capacity_bytes: int, extent_bytes: int | None = None) -> None:
        """Takes the memory at once. Raises CapacityError when there is not that much.

        `capacity_bytes` is rounded down to whole extents; without `extent_bytes` those are
        `EXTENT_BYTES`, or a quarter of a small arena.
        """
        if extent_bytes is None:
            quarter = capacity_bytes // EXTENTS_MIN // PAGE_BYTES * PAGE_BYTES
            extent_bytes = max(PAGE_BYTES, min(EXTENT_BYTES, quarter))
        machine_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if capacity_bytes > machine_bytes:
            # Told before it is taken: the kernel would end other processes to make room.
            raise CapacityError(
                f"cannot take {capacity_bytes} bytes of memory: this machine has {machine_bytes};"
                " lower host capacity_bytes",
                capacity_bytes=capacity_bytes,
            )
        self._slabs = SlabAllocator(capacity_bytes, extent_bytes)
        self.capacity_bytes = self._slabs.extent_count * extent_bytes
        self.fd = os.memfd_create("kvtier-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, self.capacity_bytes)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)
            self._view = mapped(self.fd, self.capacity_bytes)
            take_pages(self.fd, self._view)
        except OSError as error:
            os.close(self.fd)
            raise CapacityError(
                f"cannot take {self.capacity_bytes} bytes of memory: {error.strerror}; lower host"
                " capacity_bytes",
                capacity_bytes=self.capacity_bytes,
            ) from error
        self.huge_bytes = huge_bytes(self._view)
        """How much of it lies in huge pages, which take less of the processor to move."""

    @property
    def extent_bytes(self) -> int:
        """No block larger than this fits."""
        return self._slabs.extent_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes of all slabs in use."""
        return self._slabs.used_bytes

    @property
    def slab_count(self) -> int:
        return self._slabs.slab_count

    @property
    def free_extent_count(self) -> int:
        """Extents that belong to no class: any block size may take one."""
        return self._slabs.free_extent_count

    def classes(self) -> list[SlabClass]:
        """How the arena is shared out between slab sizes. With the free extents, its capacity."""
        return self._slabs.classes()

    def extents(self) -> dict[int, tuple[int, int]]:
        """Extents that belong to a class: number -> (slab bytes, slabs in use)."""
        return self._slabs.extents()

    def slab_bytes(self, block_bytes: int) -> int:
        """Size of the slab for a block. Raises BlockTooLargeError."""
        return self._slabs.slab_bytes(block_bytes)

    def allocate(self, block_bytes: int) -> Slab | None:
        """A slab for a block; None when none is free. Raises BlockTooLargeError."""
        return self._slabs.allocate(block_bytes)

    def free(self, slab: Slab) -> None:
        """Gives a slab back. REQUIRES: allocated, and nobody reads or writes it by right."""
        self._slabs.free(slab)

    def view(self, slab: Slab) -> memoryview:
        """The slab's bytes, page-aligned, `slab.size_bytes` long, shared with every client."""
        return self._view[slab.offset : slab.offset + slab.size_bytes]

    def views(self, slabs: Sequence[Slab], size_bytes: int) -> list[memoryview]:
        """The first bytes of each slab, as `view` has them."""
        whole = self._view
        return [whole[offset : offset + size_bytes] for offset, _ in slabs]

    def close(self) -> None:
        """Unmaps and closes. Views that are still held keep the mapping until they go."""
        self._view = memoryview(b"")
        os.close(self.fd)

    def check_integrity(self) -> None:
        self._slabs.check_integrity()
        assert self.used_bytes <= self.capacity_bytes
        assert os.fstat(self.fd).st_size == self.capacity_bytes
