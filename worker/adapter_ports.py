"""The cache service for a worker of several adapters: one way to it for each namespace.

A session is of one namespace, so each adapter has a client of its own, made at its first use; the
base's is there from the start. They share one breaker: a service that is down is found out once.
Any thread.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

from kvtier.blocks import MissReason
from kvtier.keys import BlockHash
from worker.cache_port import CacheHints, CachePort, RestoreResult, StoreResult
from worker.landing import Landing, Source

__all__ = ["AdapterPorts"]


class AdapterPorts:
    """A `CachePort` that asks the one of `hints.adapter`. `make` gives that of an adapter's name;
    "" is the base's."""

    def __init__(self, make: Callable[[str], CachePort]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._closed = False
        self._ports = {"": make("")}

    def restore(
        self,
        request_id: str,
        chain: Sequence[BlockHash],
        pages: Landing,
        timeout_seconds: float,
        hints: CacheHints,
        recompute_seconds: float | None = None,
    ) -> RestoreResult:
        port = self._port(hints.adapter)
        if port is None:
            return RestoreResult((), MissReason.UNAVAILABLE)
        return port.restore(request_id, chain, pages, timeout_seconds, hints, recompute_seconds)

    def store(
        self,
        request_id: str,
        chain: Sequence[BlockHash],
        pages: Source,
        hints: CacheHints,
    ) -> StoreResult:
        port = self._port(hints.adapter)
        if port is None:
            return StoreResult(0, 0, len(chain))
        return port.store(request_id, chain, pages, hints)

    def connected(self) -> bool:
        """Whether the base's is."""
        return self._ports[""].connected()

    def close(self) -> Any:
        """Ends all of them. Idempotent."""
        with self._lock:
            self._closed = True
        for port in list(self._ports.values()):
            port.close()

    def _port(self, adapter: str) -> CachePort | None:
        """None: it was never asked for, and all are closed."""
        with self._lock:
            if adapter not in self._ports and not self._closed:
                self._ports[adapter] = self._make(adapter)
            return self._ports.get(adapter)
