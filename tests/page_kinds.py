"""Kinds of pages that a transfer may have, each a real one: in host memory, and on a device.

The device is host memory that nobody copies to or from but a thread of its own, in another order
than it was asked, and later. Whoever reads or writes too early is seen by what comes out.
"""

import contextlib
import random
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch

from kvtier.blocks import MissReason
from worker.cache_client import CacheClient
from worker.cache_port import RestoreResult, StoreResult
from worker.device_copies import CopyEvent
from worker.device_pages import DeviceLanding, DeviceSource
from worker.host_pages import HostPages
from worker.kv_pages import KvPages
from worker.landing import Landing, PageBytes, Source

PageKind = Literal["in place", "staged", "registered"]
"""On a device a slab goes through staging, or is registered with it."""


class CopyOfAThread:
    """An event."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self.error: BaseException | None = None

    def done(self) -> bool:
        return self._over.is_set()

    def wait(self) -> None:
        assert self._over.wait(60), "a copy was never made"
        if self.error is not None:
            raise self.error

    def end(self) -> None:
        self._over.set()


class ThreadedCopies:
    """`DeviceCopies` by a thread. `stop` it."""

    def __init__(self, data: torch.Tensor, reads: bool = False, seed: int = 0) -> None:
        """`data`: `[pages, elements]`; `reads`: whether slabs are registered."""
        self._rows = data.view(torch.uint8)
        self.page_bytes = self._rows.shape[1]
        self._reads = reads
        self._random = random.Random(seed)
        self._asked = threading.Condition()
        self._queue: list[tuple[torch.Tensor, torch.Tensor, CopyOfAThread]] = []
        self._stopped = False
        self.staged_count = 0
        self._thread = threading.Thread(target=self._work, name="device-copies", daemon=True)
        self._thread.start()

    def fence(self) -> CopyEvent:
        event = CopyOfAThread()
        event.end()
        return event

    def load(self, host: PageBytes, page: int, after: CopyEvent) -> CopyEvent:
        return self._ask(self._rows[page], torch.from_numpy(host))

    def store(self, page: int, host: PageBytes, after: CopyEvent) -> CopyEvent:
        return self._ask(torch.from_numpy(host), self._rows[page])

    def staging(self, count: int) -> Sequence[PageBytes]:
        self.staged_count += count
        return [np.full(self.page_bytes, 0xAA, dtype=np.uint8) for _ in range(count)]

    def reads(self, slab: PageBytes) -> bool:
        return self._reads

    def stop(self) -> None:
        """What was asked for is done before."""
        with self._asked:
            self._stopped = True
            self._asked.notify_all()
        self._thread.join(60)

    def _ask(self, target: torch.Tensor, source: torch.Tensor) -> CopyEvent:
        event = CopyOfAThread()
        with self._asked:
            assert not self._stopped
            self._queue.append((target, source, event))
            self._asked.notify_all()
        return event

    def _work(self) -> None:
        while True:
            with self._asked:
                self._asked.wait_for(lambda: self._queue or self._stopped)
                if not self._queue:
                    return
                # A moment for others to come, so that there is an order to change.
                self._asked.wait_for(lambda: len(self._queue) > 3 or self._stopped, 0.0005)
                at = self._random.randrange(len(self._queue))
                target, source, event = self._queue.pop(at)
            try:
                target.copy_(source)
            except BaseException as error:
                event.error = error
            event.end()


@contextlib.contextmanager
def device_pages() -> Iterator[tuple[type[KvPages], list[ThreadedCopies]]]:
    """`KvPages` on such a device, and what copies there for each that was made."""
    made: list[ThreadedCopies] = []

    class DevicePages(KvPages):
        def __init__(self, *args: Any, copies: Any = None, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs, copies=self._device)

        def _device(self, data: torch.Tensor) -> ThreadedCopies:
            made.append(ThreadedCopies(data, seed=len(made)))
            return made[-1]

    try:
        yield DevicePages, made
    finally:
        for copies in made:
            copies.stop()


@contextlib.contextmanager
def landing_in(kind: PageKind, pages: Sequence[PageBytes]) -> Iterator[Landing]:
    """A landing of that kind; what landed is in `pages` when the body ends."""
    if kind == "in place" or not pages:
        yield HostPages(pages)
        return
    data = torch.full((len(pages), pages[0].nbytes), 0x55, dtype=torch.uint8)
    copies = ThreadedCopies(data, reads=kind == "registered")
    landing = DeviceLanding(copies, range(len(pages)))
    try:
        yield landing
    finally:
        # No wait here: when a restore returns, nothing is under way.
        for page, row in zip(pages, data.numpy(), strict=True):
            page[:] = row
        copies.stop()


@contextlib.contextmanager
def source_in(kind: PageKind, pages: Sequence[PageBytes]) -> Iterator[Source]:
    if kind == "in place" or not pages:
        yield HostPages(pages)
        return
    copies = ThreadedCopies(torch.from_numpy(np.stack(pages)))
    try:
        yield DeviceSource(copies, range(len(pages)))
    finally:
        copies.stop()


class ListClient(CacheClient):
    """The worker's client, for pages in lists."""

    def __init__(self, *terms: Any, kind: PageKind = "in place", **options: Any) -> None:
        super().__init__(*terms, **options)
        self._kind: PageKind = kind

    def restore(self, request_id: str, chain: Any, pages: Any, *rest: Any) -> Any:
        with landing_in(self._kind, pages) as landing:
            return super().restore(request_id, chain, landing, *rest)

    def store(self, request_id: str, chain: Any, pages: Any, *rest: Any) -> Any:
        with source_in(self._kind, pages) as source:
            return super().store(request_id, chain, source, *rest)


class IdleCache:
    """A cache service that has nothing and takes nothing: what a test changes nothing about."""

    def restore(
        self, request_id: str, chain: Any, pages: Any, timeout_seconds: float, *costs: Any
    ) -> RestoreResult:
        return RestoreResult((), MissReason.NEVER_STORED)

    def store(self, request_id: str, chain: Any, pages: Any, hints: Any = None) -> StoreResult:
        return StoreResult(0, 0, len(chain))

    def connected(self) -> bool:
        return True

    def close(self) -> None:
        """It has nothing."""


def land(landing: Landing, payloads: Sequence[bytes]) -> None:
    """What a cache service in a dict does: these are the first pages."""
    for index, payload in enumerate(payloads):
        (room, *_) = landing.room(index, 1)
        room[:] = np.frombuffer(payload, dtype=np.uint8)
        landing.push(index, [room])
    landing.settle(0, len(payloads), in_turn)


def contents(source: Source) -> list[bytes]:
    found = []
    for index in range(len(source)):
        with source.lend([index]) as (page,):
            found.append(page.tobytes())
    return found


def in_turn(count: int, work: Any) -> int:
    """`Spread` by the calling thread."""
    for index in range(count):
        if not work(index):
            return index
    return count
