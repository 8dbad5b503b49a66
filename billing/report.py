"""Usage reports: tokens, exact amounts and savings, summed by tenant, model, day or hour.

The sums are those of the postings, to the last digit (`usage_sums`). Nothing is rounded here. Days
and hours are UTC. Reads one snapshot; runs on a reader's thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection

from billing.corrected import CorrectedEntry, corrections_of
from billing.errors import InvalidGroupError, TooManyRowsError
from billing.ledger_schema import UNKNOWN
from billing.line import saved_by_hits, saved_net
from billing.money import EXACT, ZERO
from billing.period import DAY_NS, HOUR_NS, Period
from billing.usage_sums import UsageSum, usage_sums

__all__ = [
    "DIMENSIONS",
    "ROWS_MAX",
    "UsageQuery",
    "UsageRow",
    "check_groups",
    "group_label",
    "usage_rows",
]

DIMENSIONS = ("tenant", "project", "key", "model", "day", "hour")

ROWS_MAX = 20_000
"""Of a report: about 4 MiB on the wire."""

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
        check_groups(self.group_by)


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
    net_saved: Decimal = ZERO
    """Less what cache writes and storage cost."""
    storage: dict[str, int] = field(default_factory=dict)
    """Token-milliseconds by tier."""
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
    rows: dict[tuple[tuple[str, ...], str], UsageRow] = {}
    for found in usage_sums(
        connection, query.period, query.tenant_id, query.group_by, query.project_id
    ):
        group = tuple(map(group_label, query.group_by, found.group))
        currency = found.version.currency if found.version is not None else ""
        _add(rows.setdefault((group, currency), UsageRow(group, currency)), found)
    for each in corrections_of(connection, query.period, query.tenant_id, query.project_id):
        group, currency = _group_of(each, query.group_by), each.correction.currency
        row = rows.setdefault((group, currency), UsageRow(group, currency))
        row.corrected = EXACT.add(row.corrected, each.correction.amount)
        row.amount = EXACT.add(row.amount, each.correction.amount)
    if len(rows) > ROWS_MAX:
        raise TooManyRowsError(
            f"the report has more than {ROWS_MAX} rows; name a tenant, a shorter period or fewer"
            " groups"
        )
    return [rows[key] for key in sorted(rows)]


def check_groups(group_by: Sequence[str]) -> None:
    """Raises InvalidGroupError."""
    unknown = [name for name in group_by if name not in DIMENSIONS]
    if unknown or len(set(group_by)) != len(group_by):
        raise InvalidGroupError(
            f"group by any of {', '.join(DIMENSIONS)}, each at most once; not by"
            f" {', '.join(group_by)}"
        )


def _add(row: UsageRow, found: UsageSum) -> None:
    row.request_count += found.request_count
    for name in _SUMS:
        setattr(row, name, getattr(row, name) + found.tokens[name])
    for ttl_class, count in found.cache_writes.items():
        row.cache_writes[ttl_class] = row.cache_writes.get(ttl_class, 0) + count
    for tier, kept in found.storage.items():
        row.storage[tier] = row.storage.get(tier, 0) + kept
    for key, quantity in found.quantities.items():
        row.amount = EXACT.add(row.amount, key.amount(quantity))
        row.saved = EXACT.add(row.saved, saved_by_hits(key, quantity))
        row.net_saved = EXACT.add(row.net_saved, saved_net(key, quantity))


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
    return tuple(group_label(name, values[name]) for name in group_by)


def group_label(dimension: str, value: Any) -> str:
    if dimension == "day":
        return f"{datetime.fromtimestamp(value * 86_400, UTC):%Y-%m-%d}"
    if dimension == "hour":
        return f"{datetime.fromtimestamp(value * 3_600, UTC):%Y-%m-%dT%H:00Z}"
    return UNKNOWN if value is None else str(value)
