"""What the ledger has of a scope's past: amounts of a period, weights of a day and a minute.

Reads one snapshot of what is committed. Blocks; any thread.
"""

from contextlib import closing
from decimal import Decimal
from typing import Any

from sqlalchemy import ColumnElement, Connection, select

from billing.budget import Scope
from billing.entry_filter import of_period
from billing.ledger_schema import budget_alerts, budget_spend, entries, postings
from billing.money import EXACT, ZERO
from billing.period import Period
from billing.price_book import PriceBook
from billing.quota_weight import quota_weight, weight_micro
from billing.report import UsageQuery, usage_rows
from billing.token_sums import token_sums
from billing.usage import TokenCounts, event_from_text
from billing.usage_sums import stored_versions

__all__ = ["alerted", "kept_spent", "minute_used", "period_spent", "period_weight"]

EVENTS_MAX = 10_000
"""Of one minute; with more its buckets start empty."""

_MINUTE_NS = 60 * 10**9


def period_spent(connection: Connection, scope: Scope, period: Period, currency: str) -> Decimal:
    """Amounts of what ended, and of corrections made, in `period`."""
    if all(version.linear for version in stored_versions(connection).values()):
        return _spent_of_sums(connection, scope, period, currency)
    return _spent_of_postings(connection, scope, period, currency)


def kept_spent(
    connection: Connection, scope: Scope, period: Period, currency: str
) -> Decimal | None:
    """The same as it was kept with the last entry; None: it was not."""
    b = budget_spend.c
    query = select(b.amount).where(
        b.tenant_id == scope.tenant_id,
        b.project_id == scope.project_id,
        b.key_id == scope.key_id,
        b.currency == currency,
        b.start_ns == period.start_ns,
        b.end_ns == period.end_ns,
    )
    found = connection.execute(query).scalar_one_or_none()
    return None if found is None else Decimal(found)


def _spent_of_sums(connection: Connection, scope: Scope, period: Period, currency: str) -> Decimal:
    group_by = ("key",) if scope.key_id else ()
    query = UsageQuery(scope.tenant_id, scope.project_id, period, group_by)
    total = ZERO
    for row in usage_rows(connection, query):
        if row.currency == currency and row.group == ((scope.key_id,) if scope.key_id else ()):
            total = EXACT.add(total, row.amount)
    return total


def _spent_of_postings(
    connection: Connection, scope: Scope, period: Period, currency: str
) -> Decimal:
    """Each amount once, where sums of tokens have no price."""
    conditions = of_period(period, scope.tenant_id, scope.project_id)
    if scope.key_id:
        conditions.append(entries.c.key_id == scope.key_id)
    query = (
        select(postings.c.amount)
        .join(entries, entries.c.position == postings.c.position)
        .where(postings.c.line == 1, postings.c.currency == currency, *conditions)
        .where(entries.c.kind.in_(("usage", "correction", "storage")))
    )
    total = ZERO
    with closing(connection.execution_options(yield_per=1_000).execute(query)) as rows:
        for (amount,) in rows:
            total = EXACT.add(total, Decimal(amount))
    return total


def period_weight(connection: Connection, scope: Scope, period: Period, book: PriceBook) -> int:
    """Weight of what ended in `period`, in millionths, by the quotas of `book`."""
    group_by = ("key",) if scope.key_id else ()
    total = 0
    for row in token_sums(connection, period, scope.tenant_id, scope.project_id, group_by):
        if scope.key_id and row[0] != scope.key_id:
            continue
        tokens = _tokens_of(row)
        assert period.start_ns is not None
        version = book.version_for(period.start_ns, row.price_model) or book.versions[-1]
        card = version.card_of(row.price_model)
        total += weight_micro(quota_weight(tokens, card, int(row.request_count)))
    return total


def minute_used(
    connection: Connection, scope: Scope, now_ns: int, book: PriceBook
) -> tuple[int, int] | None:
    """(requests, weight) of what ended within the last minute; None: too many to count."""
    conditions: list[ColumnElement[bool]] = [
        entries.c.tenant_id == scope.tenant_id,
        entries.c.kind == "usage",
        entries.c.end_time_ns > now_ns - _MINUTE_NS,
    ]
    if scope.project_id:
        conditions.append(entries.c.project_id == scope.project_id)
    if scope.key_id:
        conditions.append(entries.c.key_id == scope.key_id)
    query = select(entries.c.event).where(*conditions).limit(EVENTS_MAX + 1)
    events = connection.execute(query).scalars().all()
    if len(events) > EVENTS_MAX:
        return None
    weight = 0
    for text in events:
        event = event_from_text(text)
        version = book.version_at(event.end_time_ns or now_ns)
        card = version.card_of(event.model) if version is not None else None
        weight += weight_micro(quota_weight(event.tokens, card))
    return len(events), weight


def alerted(
    connection: Connection, scope: Scope, kind: str, budget_position: int, period: int
) -> set[int]:
    """Percents that an alert was given for."""
    a = budget_alerts.c
    query = select(a.percent).where(
        a.tenant_id == scope.tenant_id,
        a.project_id == scope.project_id,
        a.key_id == scope.key_id,
        a.kind == kind,
        a.budget_position == budget_position,
        a.period == period,
    )
    return set(connection.execute(query).scalars().all())


def _tokens_of(row: Any) -> TokenCounts:
    gpu, host = int(row.hit_gpu), int(row.hit_host)
    ssd, shared = int(row.hit_ssd), int(row.hit_shared)
    hit, miss, output = gpu + host + ssd + shared, int(row.miss), int(row.output)
    written = int(row.cache_write)
    return TokenCounts(hit + miss, hit, gpu, host, ssd, shared, miss, output, written)
