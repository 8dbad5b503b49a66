"""Copies of pages on a CUDA device: one stream each way, an event for each copy.

Thin on purpose: what is decided is decided in `device_pages.py` and `registered_memory.py`, which
run without a device. Any thread; torch's streams and events are thread-safe.
"""

from collections.abc import Sequence
from typing import Any

import torch

from worker.device_copies import CopyEvent
from worker.landing import PageBytes
from worker.registered_memory import RegisteredMemory

__all__ = ["CudaCopies", "cuda_registered_memory"]

_cuda: Any = torch.cuda
"""Half of it has no types."""


class _CudaEvent:
    def __init__(self, stream: torch.cuda.Stream) -> None:
        # Blocking: a thread that waits sleeps, and leaves its core to those that hash.
        self.event = _cuda.Event(blocking=True)
        self.event.record(stream)

    def done(self) -> bool:
        return bool(self.event.query())

    def wait(self) -> None:
        self.event.synchronize()


class CudaCopies:
    """`DeviceCopies` of the pages in `data`, `[pages, elements]`."""

    def __init__(self, data: torch.Tensor, registered: RegisteredMemory | None) -> None:
        self._rows = data.view(torch.uint8)
        self.page_bytes = self._rows.shape[1]
        self._device = data.device
        self._registered = registered
        self._loads = _cuda.Stream(self._device)
        self._stores = _cuda.Stream(self._device)

    def fence(self) -> CopyEvent:
        return _CudaEvent(torch.cuda.current_stream(self._device))

    def load(self, host: PageBytes, page: int, after: CopyEvent) -> CopyEvent:
        return self._copy(self._loads, self._rows[page], torch.from_numpy(host), after)

    def store(self, page: int, host: PageBytes, after: CopyEvent) -> CopyEvent:
        return self._copy(self._stores, torch.from_numpy(host), self._rows[page], after)

    def staging(self, count: int) -> Sequence[PageBytes]:
        # One tensor a page: torch keeps what is given back for the next who asks for that size.
        return [
            torch.empty(self.page_bytes, dtype=torch.uint8, pin_memory=True).numpy()
            for _ in range(count)
        ]

    def reads(self, slab: PageBytes) -> bool:
        return self._registered is not None and self._registered.has(slab)

    def _copy(
        self,
        stream: torch.cuda.Stream,
        target: torch.Tensor,
        source: torch.Tensor,
        after: CopyEvent,
    ) -> CopyEvent:
        assert isinstance(after, _CudaEvent)
        with torch.cuda.stream(stream):
            stream.wait_event(after.event)
            target.copy_(source, non_blocking=True)
            return _CudaEvent(stream)


_PORTABLE = 1
"""For every context, as torch's own page-locked memory is."""


def cuda_registered_memory(device: torch.device) -> RegisteredMemory:
    """Registers with the CUDA runtime. What it refuses stays that thread's last error, which torch
    looks for after it launched something: a thread that registers launches nothing."""

    def register(address: int, size: int) -> str:
        with torch.cuda.device(device):
            status = _cuda.cudart().cudaHostRegister(address, size, _PORTABLE)
        return "" if int(status) == 0 else f"cudaHostRegister: {status}"

    def unregister(address: int) -> None:
        with torch.cuda.device(device):
            _cuda.cudart().cudaHostUnregister(address)

    return RegisteredMemory(register, unregister)
