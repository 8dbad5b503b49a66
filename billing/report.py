"""Usage reports: tokens, exact amounts and savings, summed by tenant, model, day or hour.

Tokens are summed as integers per model and price version (`token_sums`), and priced afterwards:
amounts are linear in tokens, so this is, to the last digit, the sum of the postings. Nothing is
rounded here. Days and hours are UTC. Reads one snapshot; runs on a reader's thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, select

from billing.corrected import CorrectedEntry, corrections_of
from billing.errors import InvalidGroupError, TooManyRowsError
from billing.ledger_schema import UNKNOWN, price_versions
from billing.money import EXACT, ZERO, amount_of
from billing.period import DAY_NS, HOUR_NS, Period
from billing.price_book import Price, PriceId, PriceVersion, version_from_text
from billing.token_sums import token_sums

__all__ = [
    "DIMENSIONS",
    "UsageQuery",
    "UsageRow",
    "saved_by_hits",
    "stored_versions",
    "usage_rows",
]

DIMENSIONS = ("tenant", "project", "key", "model", "day", "hour")

ROWS_MAX = 20_000
"""Of a report: about 4 MiB on the wire."""

_GROUPS_MAX = 200_000
"""Of the database's answer, which is also split by model and price version."""

_SUMS = ("hit_gpu", "hit_host", "hit_ssd", "hit_shared", "miss", "output")


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Which events, and summed by what."""

    tenant_id: str = ""
    """Empty: all tenants."""
    project_id: str = ""
    """Empty: all projects."""
    period: Period = field(default_factory=Period)
    group_by: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises InvalidGroupError."""
        unknown = [name for name in self.group_by if name not in DIMENSIONS]
        if unknown or len(set(self.group_by)) != len(self.group_by):
            raise InvalidGroupError(
                f"group by any of {', '.join(DIMENSIONS)}, each at most once;"
                f" not by {', '.join(self.group_by)}"
            )


@dataclass(slots=True)
class UsageRow:
    """Sums of one group in one currency."""

    group: tuple[str, ...]
    """Values of the query's dimensions, in their order."""
    currency: str
    """Empty: no price book version covers these requests."""
    request_count: int = 0
    hit_gpu: int = 0
    hit_host: int = 0
    hit_ssd: int = 0
    hit_shared: int = 0
    miss: int = 0
    output: int = 0
    cache_writes: dict[str, int] = field(default_factory=dict)
    """Tokens by TTL class, of miss and output."""
    amount: Decimal = ZERO
    saved: Decimal = ZERO
    corrected: Decimal = ZERO
    """Of the amount: what corrections add, negative where they take off."""

    @property
    def hit(self) -> int:
        return self.hit_gpu + self.hit_host + self.hit_ssd + self.hit_shared

    @property
    def prompt(self) -> int:
        return self.hit + self.miss


def usage_rows(connection: Connection, query: UsageQuery) -> list[UsageRow]:
    """Rows ordered by group, then currency. Raises TooManyRowsError over ROWS_MAX."""
    versions = stored_versions(connection)
    rows: dict[tuple[tuple[str, ...], str], UsageRow] = {}
    sums = token_sums(
        connection,
        query.period,
        query.tenant_id,
        query.project_id,
        query.group_by,
        _GROUPS_MAX,
    )
    for count, found in enumerate(sums):
        if count == _GROUPS_MAX:
            raise _too_many()
        version = versions[found.price_id] if found.price_id is not None else None
        group = tuple(
            _label(name, value)
            for name, value in zip(query.group_by, found[: len(query.group_by)], strict=True)
        )
        currency = version.currency if version is not None else ""
        row = rows.setdefault((group, currency), UsageRow(group, currency))
        _add(row, found, version.price_of(found.price_model) if version is not None else None)
    for each in corrections_of(connection, query.period, query.tenant_id, query.project_id):
        group, currency = _group_of(each, query.group_by), each.correction.currency
        row = rows.setdefault((group, currency), UsageRow(group, currency))
        row.corrected = EXACT.add(row.corrected, each.correction.amount)
        row.amount = EXACT.add(row.amount, each.correction.amount)
    if len(rows) > ROWS_MAX:
        raise _too_many()
    return [rows[key] for key in sorted(rows)]


def saved_by_hits(hit_tokens: int, price: Price) -> Decimal:
    """What `hit_tokens` would have cost more as miss tokens, exactly."""
    return EXACT.subtract(amount_of(hit_tokens, price.miss), amount_of(hit_tokens, price.hit))


def stored_versions(connection: Connection) -> dict[PriceId, PriceVersion]:
    """Every price version that rated an event, as it was then."""
    return {
        PriceId(row.price_id): version_from_text(row.text)
        for row in connection.execute(select(price_versions))
    }


def _too_many() -> TooManyRowsError:
    return TooManyRowsError(
        f"the report has more than {ROWS_MAX} rows; name a tenant, a shorter period or fewer groups"
    )


def _add(row: UsageRow, found: Any, price: Price | None) -> None:
    row.request_count += int(found.request_count)
    for name in _SUMS:
        setattr(row, name, getattr(row, name) + int(getattr(found, name)))
    written = int(found.cache_write)
    if written:
        row.cache_writes[found.ttl_class] = row.cache_writes.get(found.ttl_class, 0) + written
    if price is None:
        return
    hit = int(found.hit_gpu + found.hit_host + found.hit_ssd + found.hit_shared)
    parts = (
        (hit, price.hit),
        (int(found.miss), price.miss),
        (int(found.output), price.output),
        (written, price.cache_write_price(found.ttl_class) or ZERO),
    )
    for quantity, unit_price in parts:
        row.amount = EXACT.add(row.amount, amount_of(quantity, unit_price))
    row.saved = EXACT.add(row.saved, saved_by_hits(hit, price))


def _group_of(corrected: CorrectedEntry, group_by: Sequence[str]) -> tuple[str, ...]:
    """By its entry; by day and hour, when the correction was made."""
    correction = corrected.correction
    values = {
        "tenant": correction.tenant_id,
        "project": corrected.project_id,
        "key": corrected.key_id,
        "model": corrected.model,
        "day": correction.time_ns // DAY_NS,
        "hour": correction.time_ns // HOUR_NS,
    }
    return tuple(_label(name, values[name]) for name in group_by)


def _label(dimension: str, value: Any) -> str:
    if dimension == "day":
        return f"{datetime.fromtimestamp(value * 86_400, UTC):%Y-%m-%d}"
    if dimension == "hour":
        return f"{datetime.fromtimestamp(value * 3_600, UTC):%Y-%m-%dT%H:00Z}"
    return UNKNOWN if value is None else str(value)
