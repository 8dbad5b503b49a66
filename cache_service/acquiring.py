"""Acquiring: leases the longest present prefix of a chain and streams it as it becomes readable.

    match -> pin + lease -> [ ready ranges: host blocks at once, SSD blocks as they land,
                              then those of the shared tier ]                              -> end

Invariant: a block that was said to be ready stays readable until the lease ends, and none is named
after that. Whatever goes wrong (corrupt, slow, no slab) or does not pay ends the prefix there with
its reason; nothing is an error. A stream that is given up before its end releases its lease. Event
loop only.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from cache_service.block_tree import ABSENT, NOWHERE, BlockTree
from cache_service.chains import Chain
from cache_service.errors import SessionUnknownError
from cache_service.hints import NO_HINTS, Hints
from cache_service.lease import Lease, LeaseHow
from cache_service.loading import Loading
from cache_service.parts import Parts
from cache_service.session import UNKNOWN_SESSION, Session
from cache_service.views import (
    AcquireEvent,
    EndView,
    MatchView,
    PrefixView,
    ReadyView,
)
from kvtier.blocks import MissReason, Tier
from kvtier.keys import BlockHash, NamespaceId

if TYPE_CHECKING:
    from cache_service.shared_loads import SharedLoad
    from cache_service.shared_side import SharedSide

__all__ = ["Acquiring", "GrantWitness", "Match", "Reader"]

_PRESENT = (MissReason.NONE, MissReason.OTHER_NAMESPACE, MissReason.UNAVAILABLE)
"""Why a prefix ends where no block is missing."""

_HOST, _SSD = np.uint8(Tier.HOST), np.uint8(Tier.SSD)


class Reader(Protocol):
    """Whose blocks are looked for: a session, or somebody who names what a session would."""

    @property
    def namespace_id(self) -> NamespaceId: ...

    @property
    def block_bytes(self) -> int: ...


class GrantWitness(Protocol):
    """Is told of each lease that is given; must return at once."""

    def opened(
        self, lease: Lease, session: Session, request_id: str, owner: str, tiers: bytes
    ) -> None: ...


@dataclass(frozen=True, slots=True, eq=False)
class Match:
    """The longest present prefix of a chain and why it ends."""

    rows: "NDArray[np.int64]"
    tiers: bytes
    """The tier each is served from."""
    reason: MissReason


class Acquiring:
    """The reading side."""

    def __init__(self, parts: Parts, shared: "SharedSide | None" = None) -> None:
        self._shared = shared
        self._sessions = parts.sessions
        self._index = parts.index
        self._leases = parts.leases
        self._promoter = parts.promoter
        self._writer = parts.writer
        self._health = parts.health
        self._limits = parts.limits
        self._clock = parts.clock
        self._listener = parts.tally
        self.witness: GrantWitness | None = None
        """Set once, before there are leases."""
        self.ready_bytes = 0
        """Payload bytes of all blocks that became readable, since the start."""

    def lookup(self, session: Session, chain: Chain) -> PrefixView:
        """Changes nothing, not even recency."""
        match = self.match(session, chain)
        return PrefixView(len(match.rows), match.tiers, match.reason)

    def match(self, reader: Reader, chain: Chain, *, whole_units: bool = False) -> Match:
        """The present prefix as who asks for it may see it."""
        match = self._match(reader, chain)
        count = len(match.rows)
        if not whole_units or (whole := self._index.unit_ends.whole_count(match.rows)) == count:
            return match
        return Match(match.rows[:whole], match.tiers[:whole], MissReason.WITHIN_UNIT)

    def _match(self, reader: Reader, chain: Chain) -> Match:
        tree, columns = self._index.tree, self._index.tree.columns
        kind = tree.namespaces.number(reader.namespace_id, reader.block_bytes)
        rows = tree.find_chain(chain)
        count = tree.served_count(rows, kind, host_only=not self._health.available)
        good = self._index.expiries.good_count(rows[:count])
        in_host = columns.array("slab_page")[rows[:count]] != NOWHERE
        tiers = np.where(in_host, _HOST, _SSD).tobytes()
        reason = MissReason.NONE
        if good < count:
            return Match(rows[:good], tiers[:good], MissReason.EXPIRED)
        if count < len(rows):
            reason = self._why_not(int(rows[count]), kind, chain[count])
        return Match(rows[:count], tiers, reason)

    def _why_not(self, row: int, kind: int | None, block_hash: BlockHash) -> MissReason:
        if row == ABSENT:
            return self._index.absences.reason(block_hash)
        if self._index.tree.kind(row) != kind:
            return MissReason.OTHER_NAMESPACE
        return MissReason.UNAVAILABLE

    def acquire_resident(
        self, session: Session, request_id: str, chain: Chain, hints: Hints = NO_HINTS
    ) -> list[AcquireEvent]:
        """What `acquire` would say, where it has nothing to load. Else nothing is done, and [].

        Raises TooManyLeasesError.
        """
        match = self.match(session, chain, whole_units=hints.whole_units)
        if Tier.SSD in match.tiers or self._asks_shared(session, chain, match, hints):
            return []
        if not len(match.rows):
            return self._nothing(chain, match)
        began = self._clock()
        lease = self._lease(session, request_id, chain, match, began)
        self._note_use(lease.rows, hints)
        count = len(lease.rows)
        self._make_ready(lease, count)
        end = self._end(lease, match.reason)
        self._listener.prefix_ready(count, match.reason, self._clock() - began)
        return [
            self._match_view(lease, match),
            _ready(self._index.tree, lease.rows, 0, count),
            end,
        ]

    async def acquire(
        self,
        session: Session,
        request_id: str,
        chain: Chain,
        load_timeout_seconds: float | None,
        hints: Hints = NO_HINTS,
        recompute_seconds: float | None = None,
    ) -> AsyncGenerator[AcquireEvent, None]:
        """The events of one acquire. Raises TooManyLeasesError before the first."""
        deadline = self._clock() + self._timeout(load_timeout_seconds)
        match = self.match(session, chain, whole_units=hints.whole_units)
        coming: SharedLoad | None = None
        if self._asks_shared(session, chain, match, hints):
            coming, match = await self._search(session, chain, match, hints, recompute_seconds)
        if not len(match.rows) and coming is None:
            for event in self._nothing(chain, match):
                yield event
            return
        began = self._clock()
        try:
            lease = self._lease(session, request_id, chain, match, began, coming)
        except BaseException:
            if coming is not None:
                await coming.close()
            raise
        finished = False
        try:
            if lease.rows:
                self._note_use(lease.rows, hints)
            if coming is not None:
                coming.start()
            yield self._match_view(lease, match, coming)
            loading = Loading(
                self._index,
                self._leases,
                self._promoter,
                self._limits,
                self._clock,
                lease,
                self._timeout(load_timeout_seconds),
                recompute_seconds,
            )
            reason = match.reason
            # Whoever reads the events may take his time: the lease may have ended since the last,
            # and then its rows may be other blocks' by now.
            while self._leases.live(lease) and (first := lease.ready_count) < len(lease.rows):
                end = _resident_until(self._index.tree, lease.rows, first)
                if end > first:
                    self._make_ready(lease, end)
                    yield _ready(self._index.tree, lease.rows, first, end)
                    continue
                problem = await loading.bring(first)
                if problem is not MissReason.NONE:
                    reason = problem
                    break
            else:
                while coming is not None and coming.left and self._leases.live(lease):
                    seconds_left = deadline - self._clock()
                    found = await coming.next(seconds_left, recompute_seconds)
                    if isinstance(found, MissReason):
                        reason = found
                        break
                    if self._leases.live(lease):
                        first = lease.ready_count
                        self._leases.extend(lease, found)
                        self._make_ready(lease, len(lease.rows))
                        yield _ready(self._index.tree, lease.rows, first, len(lease.rows))
                else:
                    if lease.ready_count == len(chain):
                        reason = MissReason.NONE
            view = self._end(lease, reason)
            self._listener.prefix_ready(view.ready_count, view.miss_reason, self._clock() - began)
            finished = True
            yield view
        finally:
            # First what needs no waiting: whoever is cancelled here again gets no further.
            if not finished:
                self._leases.release(session.session_id, lease.lease_id, LeaseHow.ABANDONED)
            if coming is not None:
                await coming.close()

    def _asks_shared(self, session: Session, chain: Chain, match: Match, hints: Hints) -> bool:
        return self._shared is not None and self._shared.wanted(
            session, chain, len(match.rows), match.reason, hints
        )

    async def _search(
        self, session: Session, chain: Chain, match: Match, hints: Hints, cost: float | None
    ) -> "tuple[SharedLoad | None, Match]":
        """What the shared tier has behind the match, and the match again: both moved meanwhile.

        Raises SessionUnknownError.
        """
        assert self._shared is not None
        beyond = await self._shared.search(session, chain, len(match.rows), hints, cost)
        if not self._sessions.alive(session.session_id):
            raise SessionUnknownError(UNKNOWN_SESSION)
        match = self.match(session, chain, whole_units=hints.whole_units)
        if beyond is None:
            return None, match
        return self._shared.load(session, beyond, match.rows.tolist(), hints), match

    def _note_match(self, chain: Chain, match: Match) -> None:
        if self._writer is not None and match.reason not in _PRESENT:
            # Where one is nowhere, so is all behind it.
            self._writer.missed(chain.words[len(match.rows) :, 0])
        host_count = match.tiers.count(Tier.HOST)
        ssd_count = len(match.tiers) - host_count
        self._listener.prefix_matched(len(chain), host_count, ssd_count, match.reason)

    def _lease(
        self,
        session: Session,
        request_id: str,
        chain: Chain,
        match: Match,
        now: float,
        coming: "SharedLoad | None" = None,
    ) -> Lease:
        lease = self._leases.open(
            session.session_id, match.rows.tolist(), now + self._limits.lease_ttl_seconds
        )
        if self.witness is not None:
            last = lease.rows[-1] if lease.rows else NOWHERE
            if coming is not None and last == NOWHERE:
                last = coming.anchor
            owner = "" if last == NOWHERE else self._index.owners.of(last)
            self.witness.opened(lease, session, request_id, owner, _tiers(match, coming))
        self._note_match(chain, match)
        return lease

    def _nothing(self, chain: Chain, match: Match) -> list[AcquireEvent]:
        self._note_match(chain, match)
        self._listener.prefix_ready(0, match.reason, 0.0)
        return [MatchView("", 0.0, 0, b"", match.reason), EndView(0, match.reason)]

    def _match_view(
        self, lease: Lease, match: Match, coming: "SharedLoad | None" = None
    ) -> MatchView:
        ttl, tiers = self._limits.lease_ttl_seconds, _tiers(match, coming)
        return MatchView(lease.lease_id, ttl, len(tiers), tiers, match.reason)

    def _note_use(self, rows: Sequence[int], hints: Hints) -> None:
        """Counts a use of a prefix, and of what lies before it.

        An acquire may begin in the middle of a chain, when the client still has the beginning; that
        was used as well, and must not age faster than what continues it. A one-off leaves no trace.
        """
        if hints.one_off:
            return
        if hints.ttl_seconds is not None:
            expiries = self._index.expiries
            expiries.extend(rows[-1], expiries.until(hints.ttl_seconds))
        before = list(self._index.tree.ancestors(rows[0]))
        # Last to first: among equals the deeper block is then the older one, and leaves first.
        self._index.use(reversed(rows))
        self._index.use(before)
        if self._writer is not None and not self._index.tree.on_ssd(rows[-1]):
            self._writer.used(rows[-1])

    def _timeout(self, asked_seconds: float | None) -> float:
        limit = self._limits.load_timeout_seconds
        return limit if asked_seconds is None else min(limit, asked_seconds)

    def _make_ready(self, lease: Lease, ready_count: int) -> None:
        # Of one kind: a match ends where another begins.
        payload_bytes = self._index.tree.payload_bytes(lease.rows[0])
        self.ready_bytes += (ready_count - lease.ready_count) * payload_bytes
        self._leases.make_ready(lease, ready_count)

    def _end(self, lease: Lease, reason: MissReason) -> EndView:
        """Lets go of what did not become ready."""
        if not self._leases.live(lease):
            # Expired or closed meanwhile: nothing of it is protected any more.
            return EndView(0, MissReason.EXPIRED)
        self._leases.trim(lease)
        if not lease.ready_count:
            self._leases.release(lease.session_id, lease.lease_id, LeaseHow.NOTHING_READY)
        return EndView(lease.ready_count, reason)


def _resident_until(tree: BlockTree, rows: list[int], first: int) -> int:
    """End of the run of blocks from `first` that are in host memory."""
    end = first
    while end < len(rows) and tree.in_host(rows[end]) and tree.cached(rows[end]):
        end += 1
    return end


def _tiers(match: Match, coming: "SharedLoad | None") -> bytes:
    """Of the match, and of what the shared tier has behind it; before any of that came."""
    return match.tiers + bytes([Tier.SHARED]) * (0 if coming is None else coming.left)


def _ready(tree: BlockTree, rows: list[int], first: int, end: int) -> ReadyView:
    run = rows[first:end]
    return ReadyView(first, tuple(tree.slabs(run)), tuple(tree.checksums(run)))
