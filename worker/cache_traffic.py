"""Restores and offers: which pages are with a transfer thread, and what becomes of them.

    | pages             | held by                   | until                                     |
    | loaded into       | the request and the job   | the job is done or revoked                |
    | offered           | the tree and the job      | the job is done or revoked                |
    | stuck (abandoned) | the job alone             | the call returns, however late; lent      |

A running request does not wait for any of them: pages are lent to it while a transfer holds as many
(`lend`), within a bound.

Where pages are on a device, jobs work on copies in host memory and hold no page: what a load
brought is taken into the pages only while its request still waits for it.

Invariant: a page that a transfer thread may touch is never free. A call that does not return in
time is given up: its pages are lent on top of the pool's capacity, the request goes on without it,
and until it returns the cache service is not asked again. Owned by the engine's thread.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from kvtier.blocks import MissReason
from worker.cache_lanes import CacheLanes, Job, LoadJob, StoreJob
from worker.cache_port import PageBytes, RestoreResult
from worker.kv_pages import KvPages, PageId
from worker.live_request import LiveRequest, Phase
from worker.page_pool import PagePool
from worker.prefix_units import PrefixUnits
from worker.sequence import TokenSequence

__all__ = ["STORE_SECONDS_MAX", "CacheTraffic", "LoadOutcome"]

log = logging.getLogger(__name__)

LOAD_GRACE_SECONDS = 0.5
"""Past its own deadline a load gets this long to say so itself."""
STORE_SECONDS_MAX = 30.0
"""A store that takes longer is stuck: a whole context is copied and written in a fraction."""


@dataclass(frozen=True, slots=True)
class LoadOutcome:
    """A load is over. `stuck`: its pages must be swapped out of the request's table."""

    live: LiveRequest
    first_block: int
    block_count: int
    result: RestoreResult
    stuck: bool = False


@dataclass(slots=True, eq=False)
class _Flight:
    job: Job
    pages: list[PageId]
    held: bool
    """False where the job works on copies in host memory."""
    give_up_at: float
    live: LiveRequest | None = None
    first_block: int = 0
    stuck: bool = False
    lent_count: int = 0
    """Of its pages: so many more may be in use until it is over."""


class CacheTraffic:
    """The engine's side of the cache lanes."""

    def __init__(
        self,
        kv: KvPages,
        pool: PagePool,
        lanes: CacheLanes,
        clock: Callable[[], float],
        units: PrefixUnits,
        lent_max: int,
    ) -> None:
        """`lent_max`: pages lent to running requests at a time; the pool must have them."""
        self._kv = kv
        self._pool = pool
        self._lanes = lanes
        self._clock = clock
        self._units = units
        self._lent_max = lent_max
        self._flights: dict[int, _Flight] = {}
        self.restored_blocks = 0
        self.offered_blocks = 0
        self.skipped_stores = 0
        self.abandoned = 0

    @property
    def usable(self) -> bool:
        """False while a call that was given up has not returned."""
        return not any(flight.stuck for flight in self._flights.values())

    @property
    def in_flight_count(self) -> int:
        return len(self._flights)

    @property
    def storing(self) -> bool:
        """Whether a store is under way."""
        return any(isinstance(flight.job, StoreJob) for flight in self._flights.values())

    def lend(self, count: int) -> bool:
        """Lets up to `count` pages more be in use, while transfers hold as many; whether one."""
        moving = [f for f in self._flights.values() if f.held and not f.stuck]
        room = min(count, self._lent_max - sum(flight.lent_count for flight in moving))
        lent = 0
        for flight in moving:
            more = min(room - lent, len(flight.pages) - flight.lent_count)
            flight.lent_count += more
            lent += more
        if lent:
            self._pool.lend(lent)
        return lent > 0

    def stored_page_count(self) -> int:
        """Pages that stores hold and no request does: taken up again when these end."""
        stores = [f for f in self._flights.values() if f.held and f.live is None and not f.stuck]
        holders = Counter(page for flight in stores for page in flight.pages)
        # One more holder is the tree.
        return sum(self._pool.holders(page) <= count + 1 for page, count in holders.items())

    def load(
        self,
        live: LiveRequest,
        first_block: int,
        end_block: int,
        seconds: float,
        recompute_seconds: float | None = None,
    ) -> bool:
        """Starts restoring blocks `[first_block, end_block)` of the prompt; False: not possible.

        `seconds`: how long it may take; `recompute_seconds`: what computing one of them costs.
        """
        if not self.usable:
            return False
        pages = live.leader.table.pages[first_block:end_block]
        landing = _bytes_or_none(self._kv.landing_bytes, pages)
        if landing is None:
            return False
        deadline = self._clock() + seconds
        chain = live.leader.chain.hashes[first_block:end_block]
        hints = replace(live.cache_hints, whole_units=self._units.whole)
        job = LoadJob(live.request.request_id, chain, landing, deadline, hints, recompute_seconds)
        flight = _Flight(
            job, pages, self._kv.direct, deadline + LOAD_GRACE_SECONDS, live, first_block
        )
        return self._depart(flight, lambda: self._lanes.load(job))

    def offer(
        self, live: LiveRequest, sequence: TokenSequence, unit_ends: tuple[int, ...] = ()
    ) -> None:
        """Offers all resident blocks of `sequence`, from the first, with the prefix units that end
        in them; skipped when too many wait."""
        count = sequence.sealed_blocks
        if count == 0 or not self.usable:
            self.skipped_stores += count > 0
            return
        pages = sequence.table.pages[:count]
        content = _bytes_or_none(self._kv.export_bytes, pages)
        if content is None:
            self.skipped_stores += 1
            return
        chain = sequence.chain.hashes[:count]
        hints = replace(live.cache_hints, unit_ends=unit_ends, marks_forks=self._units.marks_forks)
        job = StoreJob(live.request.request_id, chain, content, hints)
        flight = _Flight(job, pages, self._kv.direct, self._clock() + STORE_SECONDS_MAX)
        if self._depart(flight, lambda: self._lanes.store(job)):
            self.offered_blocks += count
        else:
            self.skipped_stores += 1

    def settle(self, store_seconds: float = STORE_SECONDS_MAX) -> list[LoadOutcome]:
        """Takes in what is done, and gives up what is late. The loads among it.

        `store_seconds`: how long a store may take now, from its offer on.
        """
        outcomes = []
        for job in self._lanes.collect():
            flight = self._flights.pop(id(job))
            self._let_go(flight)
            if flight.stuck:
                log.info("a cache call that was given up has returned")
            elif isinstance(job, LoadJob) and flight.live is not None:
                # The pages of a request that ended meanwhile may be another one's by now.
                if flight.live.phase is Phase.LOADING:
                    landed = len(job.result.tiers)
                    self._kv.import_bytes(flight.pages[:landed], job.landing[:landed])
                    self.restored_blocks += landed
                outcomes.append(self._outcome(flight, job.result))
        now = self._clock()
        early = STORE_SECONDS_MAX - store_seconds
        late = [
            flight
            for flight in self._flights.values()
            if not flight.stuck and flight.give_up_at < now + (flight.live is None) * early
        ]
        for flight in late:
            outcomes += self._give_up(flight)
        return outcomes

    def check_integrity(self) -> None:
        """Raises AssertionError when a page with a transfer thread is free."""
        for flight in self._flights.values():
            for page in flight.pages if flight.held else ():
                assert self._pool.holders(page) > 0, "a page in transfer is free"

    def _depart(self, flight: _Flight, enqueue: Callable[[], bool]) -> bool:
        if flight.held:
            for page in flight.pages:
                self._pool.hold(page)
        self._flights[id(flight.job)] = flight
        if enqueue():
            return True
        del self._flights[id(flight.job)]
        self._let_go(flight)
        return False

    def _give_up(self, flight: _Flight) -> list[LoadOutcome]:
        if id(flight.job) not in self._flights or flight.stuck:
            return []
        if self._lanes.revoke(flight.job):
            del self._flights[id(flight.job)]
            self._let_go(flight)
            return self._abandoned(flight)
        log.warning(
            "a cache call did not return in time; going on without the cache",
            extra={"request_id": flight.job.request_id},
        )
        self.abandoned += 1
        flight.stuck = True
        if flight.held:
            self._pool.lend(len(flight.pages) - flight.lent_count)
            flight.lent_count = len(flight.pages)
        outcomes = self._abandoned(flight)
        # Whatever waits behind a stuck call would wait as long.
        for other in list(self._flights.values()):
            if other.job.waiting:
                outcomes += self._give_up(other)
        return outcomes

    def _abandoned(self, flight: _Flight) -> list[LoadOutcome]:
        if flight.live is None:
            self.skipped_stores += not flight.stuck
            return []
        return [self._outcome(flight, RestoreResult((), MissReason.UNAVAILABLE))]

    def _outcome(self, flight: _Flight, result: RestoreResult) -> LoadOutcome:
        assert flight.live is not None
        return LoadOutcome(
            flight.live,
            flight.first_block,
            len(flight.pages),
            result,
            flight.stuck and flight.held,
        )

    def _let_go(self, flight: _Flight) -> None:
        if not flight.held:
            return
        # Last first, so that leaves become idle before their parents.
        for page in reversed(flight.pages):
            self._pool.release(page)
        self._pool.take_back(flight.lent_count)


def _bytes_or_none(
    copy: Callable[[Sequence[PageId]], list[PageBytes]], pages: Sequence[PageId]
) -> list[PageBytes] | None:
    """None where there is no memory for copies: a transfer left out costs time, never a request."""
    try:
        return copy(pages)
    except (RuntimeError, MemoryError):
        log.exception("no memory to copy pages for the cache service")
        return None
