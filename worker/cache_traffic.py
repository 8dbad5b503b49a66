"""Restores and offers: which pages are with a transfer thread, and what becomes of them.

    | pages             | held by                   | until                                     |
    | loaded into       | the request and the job   | the job is done or revoked                |
    | offered           | the tree and the job      | the job is done or revoked                |
    | stuck (abandoned) | the job alone             | the call returns, however late; lent      |

A running request does not wait for any of them: pages are lent to it while a transfer holds as many
(`lend`), within a bound. What a load has brought so far is its request's at once, and no more the
job's.

Invariant: a page that a transfer thread may touch is never free. A call that does not return in
time is given up, the request goes on with what came, and until the call returns the cache service
is not asked again. On a device the job's pages are revoked, and given back when nothing is under
way; in host memory they cannot be, and are lent on top of the pool's capacity. Owned by the
engine's thread; nothing here waits.
"""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from kvtier.blocks import MissReason, Tier
from worker.cache_lanes import CacheLanes, Job, LoadJob, StoreJob
from worker.cache_port import RestoreResult
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
    """A load has brought blocks from `first_block` on. `over`: those are all; of `block_count`.
    `stuck`: the other pages must be swapped out of the request's table."""

    live: LiveRequest
    first_block: int
    block_count: int
    result: RestoreResult
    over: bool = True
    stuck: bool = False


@dataclass(slots=True, eq=False)
class _Flight:
    job: Job
    pages: list[PageId]
    """That it holds: of a load, those that have not landed."""
    give_up_at: float
    live: LiveRequest | None = None
    first_block: int = 0
    """That of the first of `pages`."""
    landed_count: int = 0
    """Blocks of its chain that its request has."""
    held: bool = True
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
        """Lets up to `count` pages more be in use, while transfers hold as many; whether one. On a
        device there are few to lend, and a store is given up for its pages instead."""
        moving = [f for f in self._flights.values() if f.held and not f.stuck]
        room = min(count, self._lent_max - sum(flight.lent_count for flight in moving))
        lent = 0
        for flight in moving:
            more = min(room - lent, len(flight.pages) - flight.lent_count)
            flight.lent_count += more
            lent += more
        if lent:
            self._pool.lend(lent)
        return lent > 0 or self._cut_a_store()

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
        landing = self._kv.landing(pages)
        live.leases.append(landing.leases)
        deadline = self._clock() + seconds
        hashes = live.leader.chain.hashes
        chain = hashes[first_block:end_block]
        place = first_block, hashes[first_block - 1] if first_block else b""
        hints = replace(live.cache_hints, whole_units=self._units.whole, place=place)
        job = LoadJob(live.request.request_id, chain, landing, deadline, hints, recompute_seconds)
        flight = _Flight(job, pages, deadline + LOAD_GRACE_SECONDS, live, first_block)
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
        source = self._kv.source(pages)
        chain = sequence.chain.hashes[:count]
        hints = replace(live.cache_hints, unit_ends=unit_ends, marks_forks=self._units.marks_forks)
        job = StoreJob(live.request.request_id, chain, source, hints)
        flight = _Flight(job, pages, self._clock() + STORE_SECONDS_MAX)
        if self._depart(flight, lambda: self._lanes.store(job)):
            self.offered_blocks += count
        else:
            self.skipped_stores += 1

    def settle(self, store_seconds: float = STORE_SECONDS_MAX) -> list[LoadOutcome]:
        """Takes in what is done or has landed, and gives up what is late. What loads brought.

        `store_seconds`: how long a store may take now, from its offer on.
        """
        outcomes = []
        for job in self._lanes.collect():
            flight = self._flights.pop(id(job))
            if flight.stuck:
                log.info("a cache call that was given up has returned")
            elif isinstance(job, LoadJob):
                outcomes.append(self._landed(flight, job.result.tiers, job.result.miss_reason))
            self._let_go(flight)
        for flight in self._flights.values():
            outcomes += self._under_way(flight)
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
            assert flight.lent_count <= len(flight.pages), "more is lent than a transfer holds"

    def _depart(self, flight: _Flight, enqueue: Callable[[], bool]) -> bool:
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
        if flight.job.pages.revoke():
            if not flight.job.pages.quiet:
                return []  # A copy is under way, and soon over: the next time.
            self._let_go(flight)
        log.warning(
            "a cache call did not return in time; going on without the cache",
            extra={"request_id": flight.job.request_id},
        )
        self.abandoned += 1
        flight.stuck = True
        outcomes = self._abandoned(flight)
        if flight.held:
            self._pool.lend(len(flight.pages) - flight.lent_count)
            flight.lent_count = len(flight.pages)
        # Whatever waits behind a stuck call would wait as long.
        for other in list(self._flights.values()):
            if other.job.waiting:
                outcomes += self._give_up(other)
        return outcomes

    def _cut_a_store(self) -> bool:
        """Whether the pages of one came back, the last offered first."""
        for flight in reversed(self._flights.values()):
            cuttable = isinstance(flight.job, StoreJob) and flight.held and not flight.stuck
            # It and the tree hold one that would come free.
            frees = cuttable and any(self._pool.holders(page) <= 2 for page in flight.pages)
            if frees and flight.job.pages.revoke():
                self.skipped_stores += 1
                if flight.job.pages.quiet:
                    self._let_go(flight)
                return not flight.held
        return False

    def _abandoned(self, flight: _Flight) -> list[LoadOutcome]:
        if flight.live is None:
            self.skipped_stores += not flight.stuck
            return []
        return [self._landed(flight, (), MissReason.UNAVAILABLE)]

    def _under_way(self, flight: _Flight) -> list[LoadOutcome]:
        """Of one that is not over: what has landed since the last look, for a request that still
        waits for it; the pages of one that does not are revoked, where they can be."""
        live = flight.live
        if live is not None and live.phase is not Phase.LOADING:
            flight.job.pages.revoke()
        if flight.job.pages.quiet:
            self._let_go(flight)
        if live is None or live.phase is not Phase.LOADING or flight.stuck:
            return []
        news = len(self._known_tiers(flight)) > flight.landed_count
        return [self._landed(flight, (), None)] if news else []

    def _known_tiers(self, flight: _Flight) -> tuple[Tier, ...]:
        """Those of whole units are known to be whole at the end only."""
        job = flight.job
        return job.pages.tiers if isinstance(job, LoadJob) and not self._units.whole else ()

    def _landed(
        self, flight: _Flight, tiers: tuple[Tier, ...], reason: MissReason | None
    ) -> LoadOutcome:
        """What came is the request's, if it still waits for it: what has landed, and whatever more
        the call says in the end, `tiers`. `reason`: why no more will come; None: more may."""
        assert flight.live is not None
        tiers = max(tiers, self._known_tiers(flight), key=len)
        new, first = tiers[flight.landed_count :], flight.first_block
        count = len(flight.pages)
        if flight.live.phase is Phase.LOADING:
            self.restored_blocks += len(new)
        flight.landed_count = len(tiers)
        flight.first_block += len(new)
        landed, flight.pages = flight.pages[: len(new)], flight.pages[len(new) :]
        if flight.held:
            self._release(landed)
        back = max(0, flight.lent_count - len(flight.pages))
        flight.lent_count -= back
        self._pool.take_back(back)
        stuck = flight.stuck and flight.held
        result = RestoreResult(new, MissReason.NONE if reason is None else reason)
        return LoadOutcome(flight.live, first, count, result, reason is not None, stuck)

    def _let_go(self, flight: _Flight) -> None:
        if not flight.held:
            return
        flight.held = False
        self._release(flight.pages)
        self._pool.take_back(flight.lent_count)
        flight.lent_count = 0

    def _release(self, pages: list[PageId]) -> None:
        # Last first, so that leaves become idle before their parents.
        for page in reversed(pages):
            self._pool.release(page)
