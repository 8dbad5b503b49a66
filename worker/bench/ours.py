"""Our own contender: the worker's cache client against a real service process.

As an engine uses it: pages of its own, checksums on the way out and back, leases released. One
thread, beside the client's own.
"""

import time
from collections.abc import Callable
from types import TracebackType

from kvtier.bench.errors import BenchError
from kvtier.bench.service import cpu_seconds
from kvtier.keys import BlockHash, NamespaceId
from kvtier.tls import channel_credentials, client_context
from worker.bench.memory import PathMemory
from worker.bench.tls import BenchTls
from worker.bench.turns import Turn, seconds
from worker.cache_client import CacheClient
from worker.cache_session import TransportChoice
from worker.host_pages import HostPages

__all__ = ["OurClient"]

_WAIT_SECONDS_MAX = 60.0
_BLOCK_TOKENS = 64
_STRIDE = 7
"""Between blocks restored one by one: not the next one, which the CPU would have fetched."""


class OurClient:
    """A connected client. Close it, or use it as a context."""

    def __init__(
        self,
        memory: PathMemory,
        address: str,
        service_pid: int,
        transport: TransportChoice,
        single_blocks: int,
        tls: BenchTls | None = None,
    ) -> None:
        """`tls`: as the service has it. Raises BenchError when `transport` does not come to be."""
        self._memory = memory
        self._pid = service_pid
        self._single_blocks = single_blocks
        self._client = CacheClient(
            address,
            NamespaceId(bytes(32)),
            memory.block_bytes,
            _BLOCK_TOKENS,
            "bench",
            transport,
            credentials=None if tls is None else channel_credentials(address, tls.client),
            lane_tls=None if tls is None else client_context(tls.client),
            store_seconds_max=_WAIT_SECONDS_MAX,
        )
        # Connects: nothing has this name.
        first = HostPages(memory.targets[:1])
        self._client.restore("bench", memory.chain(-1)[:1], first, _WAIT_SECONDS_MAX)
        if not self._client.connected():
            raise BenchError(f"no session over {transport}: {self._client.counts()}")

    def turn(self, number: int) -> Turn:
        """As `Contender.turn`. Raises BenchError."""
        cpu: dict[str, float] = {}
        chain = self._memory.chain(number)
        store_seconds = self._metered("store", cpu, lambda: self.store(chain))
        self._memory.forget()
        restore_seconds = self._metered("restore", cpu, lambda: self._restore(chain))
        self._memory.verify("the cache service")
        singles = tuple(
            self._restore_one(chain, i * _STRIDE % self._memory.count)
            for i in range(self._single_blocks)
        )
        return Turn(store_seconds, restore_seconds, singles, cpu)

    def store(self, chain: list[BlockHash]) -> None:
        """Stores the prefix under new names. Raises BenchError."""
        result = self._client.store("bench", chain, HostPages(self._memory.sources))
        if result.stored_count != len(chain):
            raise BenchError(f"not everything was stored: {result}, {self._client.counts()}")

    def _restore(self, chain: list[BlockHash]) -> None:
        result = self._client.restore(
            "bench", chain, HostPages(self._memory.targets), _WAIT_SECONDS_MAX
        )
        if len(result.tiers) != len(chain):
            raise BenchError(f"{result.miss_reason.name} ended a restore: {self._client.counts()}")

    def _restore_one(self, chain: list[BlockHash], index: int) -> float:
        one = chain[index : index + 1]
        target = HostPages(self._memory.targets[index : index + 1])
        began = time.perf_counter()
        result = self._client.restore("bench", one, target, _WAIT_SECONDS_MAX)
        took = time.perf_counter() - began
        if not result.tiers:
            raise BenchError(f"{result.miss_reason.name}: one block did not come back")
        return took

    def _metered(self, name: str, cpu: dict[str, float], work: Callable[[], None]) -> float:
        client, service = time.process_time(), cpu_seconds(self._pid)
        took = seconds(work)
        cpu[f"{name}_client"] = time.process_time() - client
        cpu[f"{name}_service"] = cpu_seconds(self._pid) - service
        return took

    def close(self) -> None:
        """Ends session and threads."""
        self._client.close()

    def __enter__(self) -> "OurClient":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
