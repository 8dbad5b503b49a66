"""Reconciliation: walks the requests of a period once, and compares token for token.

    entries, a page at a time    engine: the event      cache: its leases      ledger: its postings
    leases that ended then       is there an event that names them?
    tenants of the period        invoice: what statements say, against the sums of this walk

Invariant: nothing is held but a page and sums by tenant and model, so a month of any size takes the
same memory. Reads one snapshot; a thread of its own.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

from sqlalchemy import Connection, and_, select

from billing.attestation import Attestation, attestation_from_text
from billing.difference import Difference, Kind
from billing.entry_filter import usage_of_period
from billing.explain import notes_of
from billing.kept_aside import kept_aside
from billing.ledger_schema import attestations, entries, postings
from billing.period import Period
from billing.price_book import PriceId, PriceVersion
from billing.rating import Facts, facts_of, rated_lines
from billing.served import DELIVERY_NS_MAX, Gap, compare_served
from billing.usage import LEASES_MAX, EndReason, UsageEvent, event_from_text
from billing.usage_sums import stored_versions, usage_sums
from kvtier.serving import ShuttingDownError

__all__ = ["PAGE", "Reconciliation"]

PAGE = 500
"""Requests, or leases, that are looked at together."""

LATE_NS = 10**9
"""A lease that began no earlier before its request's end came for a load that was given up."""

_COUNTS = ("hit_gpu", "hit_host", "hit_ssd", "hit_shared", "miss", "output", "cache_write")


@dataclass(slots=True)
class Reconciliation:
    """One comparison. `run` yields differences by page; the sums are whole when it ended."""

    connection: Connection
    period: Period
    tenant_id: str
    now_ns: int
    stopping: Callable[[], bool] = lambda: False
    request_count: int = 0
    lease_count: int = 0
    difference_count: int = 0
    unexplained_count: int = 0
    tokens: Counter[str] = field(default_factory=Counter)
    _by_statement: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """Of (tenant, model, class), what the events say."""
    _last_gap: Gap | None = None

    def run(self) -> Iterator[list[Difference]]:
        """Raises ShuttingDownError when told to stop."""
        versions = stored_versions(self.connection)
        for page in self._pages():
            yield self._noted(self._compare(page, versions))
        for leases in self._lease_pages():
            yield self._noted(self._orphans(leases))
        for aside in kept_aside(self.connection, self.period, self.tenant_id, PAGE):
            yield self._noted(aside)
        yield self._noted(self._statements())

    def _noted(self, found: list[Difference]) -> list[Difference]:
        if self.stopping():
            raise ShuttingDownError("the service stops before everything was compared")
        self.difference_count += len(found)
        self.unexplained_count += sum(not each.kind.explained for each in found)
        return found

    # -- engine, cache, ledger ---------------------------------------------------------------------

    def _pages(self) -> Iterator[Sequence[Any]]:
        last = 0
        while True:
            query = (
                select(entries)
                .where(and_(True, *usage_of_period(self.period, self.tenant_id, "")))
                .where(entries.c.position > last)
                .order_by(entries.c.position)
                .limit(PAGE)
            )
            rows = self.connection.execute(query).all()
            if not rows:
                return
            yield rows
            last = rows[-1].position

    def _compare(
        self, page: Sequence[Any], versions: dict[PriceId, PriceVersion]
    ) -> list[Difference]:
        events = [event_from_text(row.event) for row in page]
        attested = self._attested([name for event in events for name in event.lease_ids or ()])
        posted = self._posted([row.position for row in page])
        found: list[Difference] = []
        for row, event in zip(page, events, strict=True):
            self._count(event)
            found += compare_served(event, attested, self._gap, self.now_ns)
            found += _compare_columns(row, event)
            version = versions[PriceId(row.price_id)] if row.price_id is not None else None
            found += _compare_postings(event, version, posted.get(row.position, Counter()))
        return found

    def _count(self, event: UsageEvent) -> None:
        self.request_count += 1
        for name in _COUNTS:
            tokens = getattr(event.tokens, name)
            if tokens:
                self.tokens[name] += tokens
                self._by_statement[event.tenant_id, event.model, name] += tokens

    def _attested(self, names: Sequence[str]) -> dict[str, Attestation]:
        table, found = attestations.c, {}
        for start in range(0, len(names), PAGE):
            some = [name for name in names[start : start + PAGE] if "\x00" not in name]
            query = select(table.content).where(table.attestation_id.in_(some))
            for text in self.connection.execute(query).scalars():
                said = attestation_from_text(text)
                found[said.attestation_id] = said
        return found

    def _posted(self, positions: Sequence[int]) -> dict[int, Counter[str]]:
        """Quantities by class, of the entries' revenue."""
        found: dict[int, Counter[str]] = {}
        query = select(postings).where(postings.c.position.in_(positions), postings.c.line > 1)
        for row in self.connection.execute(query):
            counts = found.setdefault(row.position, Counter())
            counts[row.token_class] += row.quantity_tokens
        return found

    def _gap(self, start_ns: int, end_ns: int) -> Gap | None:
        """One that touches that time."""
        if self._last_gap is not None and self._last_gap.touches(start_ns, end_ns):
            return self._last_gap
        table = attestations.c
        query = (
            select(table.content)
            .where(table.kind == "gap", table.end_time_ns >= start_ns)
            .where(table.start_time_ns <= end_ns)
            .order_by(table.end_time_ns)
            .limit(1)
        )
        text = self.connection.execute(query).scalar()
        if text is None:
            return None
        said = attestation_from_text(text)
        assert said.gap is not None
        words = (
            f"the cache service on {said.node} was killed in that time"
            if said.gap.reason == "KILLED"
            else f"the cache service on {said.node} could not write its journal then"
        )
        self._last_gap = Gap(said.node, said.start_time_ns, said.end_time_ns, words)
        return self._last_gap

    # -- cache against engine ----------------------------------------------------------------------

    def _lease_pages(self) -> Iterator[list[Attestation]]:
        table, last = attestations.c, ""
        conditions = [table.kind == "lease"]
        if self.tenant_id:
            conditions.append(table.tenant_id == self.tenant_id)
        if self.period.start_ns is not None:
            conditions.append(table.end_time_ns >= self.period.start_ns)
        if self.period.end_ns is not None:
            conditions.append(table.end_time_ns < self.period.end_ns)
        while True:
            query = select(table.content).where(and_(True, *conditions))
            query = query.where(table.attestation_id > last).order_by(table.attestation_id)
            texts = self.connection.execute(query.limit(PAGE)).scalars().all()
            if not texts:
                return
            leases = [attestation_from_text(text) for text in texts]
            self.lease_count += len(leases)
            yield leases
            last = leases[-1].attestation_id

    def _orphans(self, leases: Sequence[Attestation]) -> list[Difference]:
        """Leases that their request's event does not name."""
        names = {said.lease.request_id for said in leases if said.lease is not None}
        query = select(entries.c.request_id, entries.c.event).where(
            entries.c.request_id.in_(sorted(names)), entries.c.kind == "usage"
        )
        events = {row.request_id: row.event for row in self.connection.execute(query)}
        found = []
        for said in leases:
            assert said.lease is not None
            text = events.get(said.lease.request_id)
            event = event_from_text(text) if text is not None else None
            difference = _orphan(said, event, self.now_ns)
            if difference is not None:
                found.append(difference)
        return found

    # -- the rest ----------------------------------------------------------------------------------

    def _statements(self) -> list[Difference]:
        """What invoices and reports are made of, against the sums of the walk."""
        said: Counter[tuple[str, str, str]] = Counter()
        for each in usage_sums(self.connection, self.period, self.tenant_id, ("tenant",)):
            (tenant,) = each.group
            for name in _COUNTS[:-1]:
                said[tenant, each.model, name] += each.tokens[name]
            said[tenant, each.model, "cache_write"] += sum(each.cache_writes.values())
        found = []
        for key in sorted(set(said) | set(self._by_statement)):
            expected, stated = self._by_statement[key], said[key]
            if expected != stated:
                tenant, model, name = key
                text = (
                    f"statements of {tenant} have {stated:,} {name} tokens of {model}, the ledger's"
                    f" events {expected:,}"
                )
                found.append(
                    Difference(Kind.STATEMENT_DIFFERS, text, tenant, "", "", name, expected, stated)
                )
        return found


def _compare_columns(row: Any, event: UsageEvent) -> list[Difference]:
    found = []
    for name in _COUNTS:
        expected, column = getattr(event.tokens, name), getattr(row, name)
        if expected != column:
            text = f"the entry counts {column:,} {name} tokens, its own event {expected:,}"
            found.append(_of(event, Kind.COLUMNS_DIFFER, text, name, expected, column))
    return found


def _compare_postings(
    event: UsageEvent, version: PriceVersion | None, posted: Counter[str]
) -> list[Difference]:
    if version is None:
        if not (event.tokens.prompt or event.tokens.output):
            return []
        text = "no price book version covers the request: it is counted, and charges nothing"
        return [_of(event, Kind.UNRATED, text)]
    facts = facts_of(event)
    rated = Counter[str]()
    for line in rated_lines(facts, version):
        rated[line.key.meter] += line.quantity
    found = []
    for meter in sorted(set(rated) | set(posted)):
        if rated[meter] != posted[meter]:
            text = (
                f"{posted[meter]:,} of {meter} were posted, and the stored price version gives"
                f" {rated[meter]:,}: the ledger does not hold; run kvtier usage verify"
            )
            found.append(_of(event, Kind.POSTINGS_DIFFER, text, meter, rated[meter], posted[meter]))
    return found or _charged_by_rule(event, facts, version, rated)


def _charged_by_rule(
    event: UsageEvent, facts: Facts, version: PriceVersion, rated: Counter[str]
) -> list[Difference]:
    """What was charged otherwise than it was counted, as the price book says."""
    tokens = event.tokens
    charged = {
        "hit": sum(count for meter, count in rated.items() if meter.startswith("hit")),
        "miss": rated["miss"],
        "output": rated["output"],
    }
    if not rated:
        return []
    notes = "; ".join(notes_of(facts, version)) or "the price book's rules"
    return [
        _of(event, Kind.CHARGED_BY_RULE, notes, name, getattr(tokens, name), count)
        for name, count in charged.items()
        if count != getattr(tokens, name)
    ]


def _orphan(said: Attestation, event: UsageEvent | None, now_ns: int) -> Difference | None:
    lease = said.lease
    assert lease is not None
    served = 0
    if lease.served is not None:
        served = sum(astuple(lease.served)) * lease.block_tokens

    def difference(kind: Kind, text: str) -> Difference:
        tenant = event.tenant_id if event is not None else lease.tenant_id
        return Difference(
            kind, text, tenant, lease.request_id, said.attestation_id, "", None, served
        )

    if event is None:
        if said.end_time_ns > now_ns - DELIVERY_NS_MAX:
            return difference(
                Kind.EVENT_PENDING, "the lease's request has no event yet; it may be on its way"
            )
        text = f"{served:,} tokens were served for a request of {lease.client_name} without event"
        return difference(Kind.EVENT_MISSING, text)
    if event.lease_ids is None:
        if event.end_reason is EndReason.WORKER_LOST:
            text = f"the worker died: {served:,} tokens were served for it, and nothing is charged"
            return difference(Kind.LEASE_OF_LOST_REQUEST, text)
        return None  # Told of the event, where it has hits.
    if said.attestation_id in event.lease_ids:
        return None
    assert event.end_time_ns is not None
    if len(event.lease_ids) >= LEASES_MAX or said.start_time_ns >= event.end_time_ns - LATE_NS:
        text = f"the lease came when its request was over: {served:,} tokens were read for nobody"
        return difference(Kind.LEASE_AFTER_END, text)
    text = f"{served:,} tokens were served for the request under a lease that its event hides"
    return difference(Kind.LEASE_NOT_NAMED, text)


def _of(
    event: UsageEvent,
    kind: Kind,
    text: str,
    subject: str = "",
    expected: int | None = None,
    found: int | None = None,
) -> Difference:
    return Difference(kind, text, event.tenant_id, event.request_id, "", subject, expected, found)
