"""AcquireLog: the last acquires as they went, so that "why did it miss" has an answer afterwards.

Invariant: bounded in number, and a record in size: of the chain it keeps the last hash that was
there and the first that was missing. The newest push out the oldest. Event loop only.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from cache_service.chains import Chain
from cache_service.session import Session
from cache_service.views import AcquireEvent, EndView, MatchView, ReadyView
from kvtier.blocks import MissReason, Tier
from kvtier.keys import BlockHash

__all__ = ["AcquireLog", "AcquireRecord"]

ACQUIRES_MAX = 4096
"""A record takes about 700 bytes."""
FOUND_MAX = 16


class AcquireRecord:
    """One acquire, followed by `note` and `close`."""

    __slots__ = (
        "_clock",
        "_log",
        "asked_count",
        "block_bytes",
        "client_name",
        "ended",
        "given_up",
        "host_count",
        "lease_id",
        "match_reason",
        "matched_count",
        "matched_hash",
        "miss_reason",
        "missing_hash",
        "namespace_id",
        "owner",
        "ready_count",
        "request_id",
        "shared_count",
        "ssd_count",
        "started",
    )

    def __init__(
        self,
        log: "deque[AcquireRecord]",
        clock: Callable[[], float],
        session: Session,
        request_id: str,
        asked_count: int,
    ) -> None:
        self._log = log
        self._clock = clock
        self.request_id = request_id
        self.client_name = session.client_name
        self.namespace_id = session.namespace_id
        self.block_bytes = session.block_bytes
        self.owner = session.owner
        self.asked_count = asked_count
        self.lease_id = ""
        self.started = 0.0
        self.ended: float | None = None
        self.given_up = False
        self.host_count = self.ssd_count = self.shared_count = 0
        self.matched_count = self.ready_count = 0
        self.match_reason = self.miss_reason = MissReason.NONE
        self.matched_hash: BlockHash | None = None
        self.missing_hash: BlockHash | None = None

    def note(self, event: AcquireEvent, chain: Chain) -> None:
        """What its client is told next."""
        if isinstance(event, MatchView):
            count = event.matched_count
            self.started = self._clock()
            self.lease_id = event.lease_id
            self.matched_count = count
            self.host_count = event.tiers.count(Tier.HOST)
            self.ssd_count = event.tiers.count(Tier.SSD)
            self.shared_count = event.tiers.count(Tier.SHARED)
            self.match_reason = self.miss_reason = event.miss_reason
            self.matched_hash = chain[count - 1] if count else None
            self.missing_hash = chain[count] if count < len(chain) else None
            self._log.append(self)
        elif isinstance(event, ReadyView):
            self.ready_count += len(event.checksums)
        else:
            assert isinstance(event, EndView)
            self.ready_count = event.ready_count
            self.miss_reason = event.miss_reason
            self.ended = self._clock()

    def close(self) -> None:
        """No more events come."""
        if self.ended is None:
            self.ended = self._clock()
            self.given_up = True


class AcquireLog:
    """The last `ACQUIRES_MAX` acquires. `clock`: seconds, monotonic."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._records: deque[AcquireRecord] = deque(maxlen=ACQUIRES_MAX)

    def __len__(self) -> int:
        return len(self._records)

    def follow(self, session: Session, request_id: str, chain: Chain) -> AcquireRecord:
        """A record that is remembered from its first event on."""
        return AcquireRecord(self._records, self._clock, session, request_id, len(chain))

    def enter(
        self, session: Session, request_id: str, chain: Chain, events: Sequence[AcquireEvent]
    ) -> None:
        """All of an acquire at once; nothing, where there were no events."""
        record = self.follow(session, request_id, chain)
        for event in events:
            record.note(event, chain)

    def find(self, request_id: str, lease_id: str, owner: str | None) -> Iterator[AcquireRecord]:
        """Records of a request, or of a lease, the latest first, at most `FOUND_MAX`.

        `owner`: only of sessions that it opened; None for everybody's.
        """
        found = 0
        for record in reversed(self._records):
            asked = record.lease_id == lease_id if lease_id else record.request_id == request_id
            if asked and owner in (None, record.owner) and found < FOUND_MAX:
                found += 1
                yield record

    def check_integrity(self) -> None:
        assert len(self._records) <= ACQUIRES_MAX
