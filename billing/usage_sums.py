"""Sums of usage: tokens and line quantities by group, model and price version.

Where a version's prices are linear tokens are added up (`token_sums`) and the sums are rated; else
each event is rated and the quantities are added up by line key. Both are, to the last digit, the
sums of the postings: amounts are linear in a key's quantity. Nothing is rounded here. Reads one
snapshot; runs on a reader's thread.
"""

from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, select

from billing.entry_filter import of_period, usage_of_period
from billing.errors import TooManyRowsError
from billing.ledger_schema import UNKNOWN, entries, price_versions
from billing.line import LineKey
from billing.period import DAY_NS, HOUR_NS, Period
from billing.price_book import PriceId, PriceVersion, version_from_text
from billing.rating import Facts, facts_of, rated_lines
from billing.storage_rating import STORAGE_KIND, storage_line, storage_of_text
from billing.token_sums import token_sums
from billing.usage import TokenCounts, event_from_text

__all__ = [
    "UsageSum",
    "group_columns",
    "stored_texts",
    "stored_versions",
    "usage_sums",
]

GROUPS_MAX = 200_000
"""Of the database's answer, which is also split by model and price version."""

_ROWS_AT_ONCE = 1_000
_SUMS = ("hit_gpu", "hit_host", "hit_ssd", "hit_shared", "miss", "output")


@dataclass(slots=True)
class UsageSum:
    """Of one group of events, of one model, under one price version."""

    group: tuple[Any, ...]
    """Values of the dimensions that were asked for, in their order."""
    model: str
    version: PriceVersion | None
    """None: unrated."""
    request_count: int = 0
    tokens: Counter[str] = field(default_factory=Counter)
    """By hit_gpu, hit_host, hit_ssd, hit_shared, miss and output."""
    cache_writes: Counter[str] = field(default_factory=Counter)
    """By TTL class."""
    quantities: Counter[LineKey] = field(default_factory=Counter)
    storage: Counter[str] = field(default_factory=Counter)
    """What was kept stored, charged or not: token-milliseconds by tier."""

    def rate(self, facts: Facts) -> None:
        """Adds what a request, or a linear version's sum of requests, is charged."""
        if self.version is not None:
            for line in rated_lines(facts, self.version):
                self.quantities[line.key] += line.quantity

    def count(self, tokens: TokenCounts, request_count: int) -> None:
        self.request_count += request_count
        for name in _SUMS:
            self.tokens[name] += getattr(tokens, name)
        if tokens.cache_write:
            self.cache_writes[tokens.cache_write_ttl_class] += tokens.cache_write


def usage_sums(
    connection: Connection,
    period: Period,
    tenant_id: str,
    group_by: Sequence[str] = (),
    project_id: str = "",
) -> list[UsageSum]:
    """By the dimensions in `group_by`. Raises TooManyRowsError over GROUPS_MAX."""
    columns = group_columns(group_by)
    versions = stored_versions(connection)
    each = [price_id for price_id, version in versions.items() if not version.linear]
    conditions = usage_of_period(period, tenant_id, project_id)
    sums: dict[tuple[Any, ...], UsageSum] = {}

    def sum_of(group: tuple[Any, ...], model: str, price_id: str | None) -> UsageSum:
        found = sums.get((group, model, price_id))
        if found is None:
            if len(sums) >= GROUPS_MAX:
                raise too_many_groups()
            version = versions[PriceId(price_id)] if price_id is not None else None
            found = sums[group, model, price_id] = UsageSum(group, model, version)
        return found

    summed = token_sums(connection, period, tenant_id, project_id, group_by, GROUPS_MAX + 1)
    for count, row in enumerate(summed):
        if count == GROUPS_MAX:
            raise too_many_groups()
        if row.price_id in each:
            continue
        group = tuple(map(_said, group_by, row[: len(group_by)]))
        found = sum_of(group, row.price_model, row.price_id)
        tokens = _tokens_of(row)
        found.count(tokens, int(row.request_count))
        found.rate(Facts(row.price_model, tokens, 0))
    if each:
        others = [*conditions, entries.c.price_id.in_(each)]
        with closing(_one_by_one(connection, columns, others)) as rows:
            for row in rows:
                event = event_from_text(row.event)
                found = sum_of(tuple(row[: len(columns)]), event.model, row.price_id)
                found.count(event.tokens, 1)
                found.rate(facts_of(event))
    chosen = [*of_period(period, tenant_id, project_id), entries.c.kind == STORAGE_KIND]
    with closing(_one_by_one(connection, columns, chosen)) as rows:
        for row in rows:
            said = storage_of_text(row.event)
            version = versions[PriceId(row.price_id)] if row.price_id is not None else None
            assert said.storage is not None
            found = sum_of(tuple(row[: len(columns)]), said.storage.model, row.price_id)
            found.storage[said.storage.tier] += said.storage.token_milliseconds
            line = storage_line(said, version) if version is not None else None
            if line is not None:
                found.quantities[line.key] += line.quantity
    return list(sums.values())


def group_columns(group_by: Sequence[str]) -> list[ColumnElement[Any]]:
    """Of entries, by the names of a report's dimensions."""
    columns: dict[str, ColumnElement[Any]] = {
        "tenant": entries.c.tenant_id,
        "project": entries.c.project_id,
        "key": entries.c.key_id,
        "model": entries.c.model,
        "day": entries.c.end_time_ns // DAY_NS,
        "hour": entries.c.end_time_ns // HOUR_NS,
    }
    return [columns[name].label(name) for name in group_by]


def stored_texts(connection: Connection) -> list[str]:
    """Canonical texts of the price versions that rated events."""
    return list(connection.execute(select(price_versions.c.text)).scalars())


def stored_versions(connection: Connection) -> dict[PriceId, PriceVersion]:
    """Every price version that rated an event, as it was then."""
    return {
        PriceId(row.price_id): version_from_text(row.text)
        for row in connection.execute(select(price_versions))
    }


def too_many_groups() -> TooManyRowsError:
    return TooManyRowsError(
        "the report has too many rows; name a tenant, a shorter period or fewer groups"
    )


def _said(dimension: str, value: Any) -> Any:
    """A dimension's value in entries, of that in rollups."""
    return None if value == UNKNOWN and dimension in ("project", "key") else value


def _one_by_one(
    connection: Connection,
    columns: Sequence[ColumnElement[Any]],
    conditions: Sequence[ColumnElement[bool]],
) -> Generator[Any]:
    statement = select(*columns, entries.c.event, entries.c.price_id).where(and_(True, *conditions))
    with connection.execution_options(yield_per=_ROWS_AT_ONCE).execute(statement) as result:
        yield from result


def _tokens_of(row: Any) -> TokenCounts:
    counts = {name: int(getattr(row, name)) for name in _SUMS}
    hit = counts["hit_gpu"] + counts["hit_host"] + counts["hit_ssd"] + counts["hit_shared"]
    return TokenCounts(
        prompt=hit + counts["miss"],
        hit=hit,
        **counts,
        cache_write=int(row.cache_write),
        cache_write_ttl_class=row.ttl_class,
    )
