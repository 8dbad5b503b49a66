"""Copies of whole pages between a device and host memory, which run beside whoever asks for them.

`copies_for` chooses: a CUDA device has streams of its own for them, a processor's pages need none,
and for any other device the caller makes the copy itself. Any thread.
"""

import os
from collections.abc import Sequence
from typing import Protocol

import torch

from worker.landing import PageBytes
from worker.registered_memory import RegisteredMemory

__all__ = [
    "CopyEvent",
    "DeviceCopies",
    "WaitingCopies",
    "copies_for",
    "copy_lanes",
    "registered_for",
]

DEVICE_LANES_MAX = 8
"""Hashing at 10 GB/s a core, twice, is what a fast link waits for."""


class CopyEvent(Protocol):
    """Something that was asked of the device."""

    def done(self) -> bool:
        """Whether it is over; never blocks."""
        ...

    def wait(self) -> None:
        """Returns once it is over. Raises what the device does when it has failed."""
        ...


class DeviceCopies(Protocol):
    """Into and out of the pages of one pool. Copies may run in any order, but after their fence."""

    page_bytes: int

    def fence(self) -> CopyEvent:
        """Everything that the calling thread has asked the device to compute until now."""
        ...

    def load(self, host: PageBytes, page: int, after: CopyEvent) -> CopyEvent:
        """Begins a copy into `page`; `host` stays as it is until the event."""
        ...

    def store(self, page: int, host: PageBytes, after: CopyEvent) -> CopyEvent:
        """Begins a copy out of `page`; nobody else looks at `host` until the event."""
        ...

    def staging(self, count: int) -> Sequence[PageBytes]:
        """Memory for so many pages that is the caller's alone. Raises RuntimeError, MemoryError."""
        ...

    def reads(self, slab: PageBytes) -> bool:
        """Whether `load` takes it from where it is as fast as from staging."""
        ...


class WaitingCopies:
    """Each copy is over when the call returns."""

    def __init__(self, data: torch.Tensor) -> None:
        """`data`: `[pages, elements]`, contiguous."""
        self._rows = data.view(torch.uint8)
        self.page_bytes = self._rows.shape[1]

    def fence(self) -> CopyEvent:
        return _Over()

    def load(self, host: PageBytes, page: int, after: CopyEvent) -> CopyEvent:
        self._rows[page].copy_(torch.from_numpy(host))
        return _Over()

    def store(self, page: int, host: PageBytes, after: CopyEvent) -> CopyEvent:
        torch.from_numpy(host).copy_(self._rows[page])
        return _Over()

    def staging(self, count: int) -> Sequence[PageBytes]:
        return list(torch.empty(count, self.page_bytes, dtype=torch.uint8).numpy())

    def reads(self, slab: PageBytes) -> bool:
        return True


class _Over:
    def done(self) -> bool:
        return True

    def wait(self) -> None:
        """It is over."""


def copies_for(
    data: torch.Tensor, registered: RegisteredMemory | None = None
) -> DeviceCopies | None:
    """For the pages in `data`, `[pages, elements]`; None where they are host memory themselves.

    `registered`: what of host memory is registered with the device.
    """
    if data.device.type == "cpu":
        return None
    if data.device.type == "cuda":
        # Here only: a processor has no use for it.
        from worker.cuda_copies import CudaCopies

        return CudaCopies(data, registered)
    return WaitingCopies(data)


def registered_for(device: torch.device) -> RegisteredMemory | None:
    """Where host memory is registered with the device; None for one that has no use for it."""
    if device.type != "cuda":
        return None
    from worker.cuda_copies import cuda_registered_memory

    return cuda_registered_memory(device)


def copy_lanes(device: torch.device) -> int:
    """How many threads copy and hash for one load or store.

    In host memory one cannot fill the bus once it also hashes, and more than two gain little. For a
    device they only hash: half of the cores.
    """
    if device.type == "cpu":
        return 2
    return max(2, min(DEVICE_LANES_MAX, (os.cpu_count() or 2) // 2))
