"""CacheClient: the worker's way to the cache service; the `CachePort` the engine is given.

    engine -> restore/store -> CacheLink (breaker, session) -> Restore / Store (RPCs, copies)

Invariant: nothing the cache does becomes an exception here, a wrong byte in a page that is counted,
or a wait past the caller's deadline. Down, hung, restarted or babbling, it is a short restore.

Called from the engine's transfer threads, any number at once. State lives in the parts.
"""

import itertools
import ssl
import time
from collections.abc import Callable, Mapping, Sequence

import grpc

from kvtier.blocks import MissReason
from kvtier.breaker import Breaker
from kvtier.keys import BlockHash, NamespaceId
from worker.cache_counts import CacheCounts
from worker.cache_link import PEER_FAILURES, CacheLink, LinkDownError
from worker.cache_port import NO_HINTS, CacheHints, RestoreResult, StoreResult
from worker.cache_restore import Restore, Restored, Wanted, failure_reason
from worker.cache_session import CacheSession, SessionTerms, TransportChoice
from worker.cache_store import Store
from worker.landing import Landing, PageUse, RevokedError, Source
from worker.registered_memory import RegisteredMemory
from worker.transfer import CopyLanes, TimeUpError

__all__ = ["CacheClient"]

STORE_SECONDS_MAX = 10.0

COPY_LANES = 2
"""As `copy_lanes` has it for pages in host memory."""

REQUEST_ID_CHARS_MAX = 200

ATTEMPTS = 2
"""The second meets a service that was restarted, or forgot the session, since the first."""


class CacheClient:
    """Restores and stores blocks of one namespace and one block size.

    Connects at the first call. `transport` "auto" uses shared memory where it can.
    """

    def __init__(
        self,
        address: str,
        namespace_id: NamespaceId,
        block_bytes: int,
        block_tokens: int,
        client_name: str,
        transport: TransportChoice = "auto",
        *,
        credentials: grpc.ChannelCredentials | None = None,
        lane_tls: ssl.SSLContext | None = None,
        store_seconds_max: float = STORE_SECONDS_MAX,
        breaker: Breaker | None = None,
        clock: Callable[[], float] = time.monotonic,
        copy_lanes: int = COPY_LANES,
        registered: RegisteredMemory | None = None,
        model: str = "",
    ) -> None:
        """`copy_lanes`: threads that copy and hash; `registered`: where the arena is registered;
        `model`: as usage events call it.
        """
        terms = SessionTerms(
            address,
            namespace_id,
            block_bytes,
            block_tokens,
            client_name,
            transport,
            credentials,
            lane_tls,
            model,
        )
        self._block_bytes = block_bytes
        self._store_seconds_max = store_seconds_max
        self._clock = clock
        self._stores = itertools.count(1)
        self._counts = CacheCounts(clock)
        self._lanes = CopyLanes(copy_lanes)
        self._link = CacheLink(terms, clock, breaker or Breaker(clock), self._counts, registered)

    def restore(
        self,
        request_id: str,
        chain: Sequence[BlockHash],
        pages: Landing,
        timeout_seconds: float,
        hints: CacheHints = NO_HINTS,
        recompute_seconds: float | None = None,
    ) -> RestoreResult:
        """As `CachePort.restore`. Raises ValueError for pages that do not fit `chain`."""
        self._check_pages(chain, pages)
        deadline = self._clock() + timeout_seconds
        wanted = Wanted(chain, pages, deadline, hints, recompute_seconds)
        restored = Restored()
        for _ in range(ATTEMPTS):
            if not self._restore(request_id, wanted, restored):
                break
        self._count_restore(restored)
        return RestoreResult(tuple(restored.tiers), restored.reason)

    def store(
        self,
        request_id: str,
        chain: Sequence[BlockHash],
        pages: Source,
        hints: CacheHints = NO_HINTS,
    ) -> StoreResult:
        """As `CachePort.store`. Raises ValueError for pages that do not fit `chain`.

        A chain longer than one call may carry is stored up to there; the rest counts as refused.
        """
        self._check_pages(chain, pages)
        deadline = self._clock() + self._store_seconds_max
        # The service answers a repeated id with the first reservation, which is for the first
        # chain: an engine that stores twice for one request must not get that one's slabs.
        request_id = f"{request_id[:REQUEST_ID_CHARS_MAX]}/{next(self._stores)}"
        for _ in range(ATTEMPTS):
            result = self._store(request_id, chain, pages, deadline, hints)
            if result is not None:
                break
        else:
            result = StoreResult(0, 0, len(chain))
        self._counts.add("stored_blocks", result.stored_count)
        self._counts.add("refused_blocks", result.refused_count)
        return result

    def connected(self) -> bool:
        """Whether the service answered last time and a session is open."""
        return self._link.connected()

    def counts(self) -> Mapping[str, int]:
        """Totals since construction by name, for the worker's metrics."""
        return self._counts.totals()

    def close(self) -> None:
        """Ends session and threads. Calls from now on find the cache unavailable. Idempotent."""
        self._link.close()
        self._lanes.close()

    def _restore(
        self,
        request_id: str,
        wanted: Wanted,
        restored: Restored,
    ) -> bool:
        """One attempt in one session; True when another session may bring more."""
        started, session = self._clock(), None
        try:
            with self._link.session(wanted.deadline) as session:
                self._restore_slices(session, request_id[:REQUEST_ID_CHARS_MAX], wanted, restored)
        except (LinkDownError, TimeUpError, RevokedError) as error:
            restored.reason = failure_reason(error)
            self._counts.add("calls_not_made")
            return False
        except PEER_FAILURES as error:
            restored.reason = failure_reason(error)
            again = self._link.report(error, session, self._clock() - started)
            return again and not restored.tiers and self._clock() < wanted.deadline
        self._link.succeeded()
        return False

    def _restore_slices(
        self,
        session: CacheSession,
        request_id: str,
        wanted: Wanted,
        restored: Restored,
    ) -> None:
        """Acquires as much of the chain at a time as one call may carry."""
        count = len(wanted.chain)
        if not count:
            restored.reason = MissReason.NONE
        while (first := len(restored.tiers)) < count:
            end = min(count, first + session.max_blocks_per_call)
            part = Restored()
            try:
                Restore(session, self._lanes, self._clock, wanted.part(first, end)).run(
                    request_id, part
                )
            finally:
                restored.tiers.extend(part.tiers)
                restored.reason = part.reason
                self._counts.add("corrupt_blocks", len(part.corrupt))
            if len(restored.tiers) < end:
                return

    def _store(
        self,
        request_id: str,
        chain: Sequence[BlockHash],
        pages: Source,
        deadline: float,
        hints: CacheHints,
    ) -> StoreResult | None:
        """One attempt in one session; None when another session may do better."""
        started, session, store = self._clock(), None, None
        if not chain:
            return StoreResult(0, 0, 0)
        try:
            with self._link.session(deadline) as session:
                end = min(len(chain), session.max_blocks_per_call)
                store = Store(
                    session, self._lanes, self._clock, chain[:end], pages, deadline, hints
                )
                result = store.run(request_id)
        except (LinkDownError, TimeUpError, RevokedError):
            self._counts.add("calls_not_made")
            return _cut_short(store, len(chain))
        except PEER_FAILURES as error:
            again = self._link.report(error, session, self._clock() - started)
            # Another attempt finds the slices of this one present.
            return None if again and self._clock() < deadline else _cut_short(store, len(chain))
        self._link.succeeded()
        refused = result.refused_count + len(chain) - end
        return StoreResult(result.stored_count, result.present_count, refused)

    def _check_pages(self, chain: Sequence[BlockHash], pages: PageUse) -> None:
        if len(pages) < len(chain):
            raise ValueError(f"{len(chain)} blocks need as many pages, not {len(pages)}")
        if chain and pages.page_bytes != self._block_bytes:
            raise ValueError(f"a page must be of {self._block_bytes} bytes, not {pages.page_bytes}")

    def _count_restore(self, restored: Restored) -> None:
        self._counts.add("restores")
        self._counts.add("restored_blocks", len(restored.tiers))
        self._counts.add(f"restores_ended_{restored.reason.name.lower()}")


def _cut_short(store: Store | None, count: int) -> StoreResult:
    """Of a store that ended with an error: slices before it may be stored."""
    stored_count = store.stored_count() if store is not None else 0
    return StoreResult(stored_count, 0, count - stored_count)
