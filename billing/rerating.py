"""A period under another price book: what the same events would have cost.

Reads stored events and changes nothing. What they were charged is summed from the versions that
rated them, what they would be from the book that is given: by the same rule, exactly. Runs on a
reader's thread over one snapshot.
"""

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, and_, select

from billing.entry_filter import usage_of_period
from billing.errors import TooManyRowsError
from billing.ledger_schema import entries
from billing.line import RatedLine, saved_by_hits
from billing.money import EXACT, ZERO
from billing.period import Period
from billing.price_book import PriceBook, PriceId
from billing.rating import facts_of, rated_lines
from billing.report import ROWS_MAX, check_groups, group_label
from billing.usage import event_from_text
from billing.usage_sums import group_columns, stored_versions
from kvtier.serving import ShuttingDownError

__all__ = ["RerateQuery", "ReratedRow", "Sum", "rerated_rows"]

_ROWS_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class RerateQuery:
    tenant_id: str = ""
    """Empty: all tenants."""
    period: Period = field(default_factory=Period)
    group_by: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises InvalidGroupError."""
        check_groups(self.group_by)


@dataclass(slots=True)
class Sum:
    """Of one currency."""

    amount: Decimal = ZERO
    saved: Decimal = ZERO
    request_count: int = 0

    def add(self, lines: tuple[RatedLine, ...]) -> None:
        self.request_count += 1
        for line in lines:
            self.amount = EXACT.add(self.amount, line.amount)
            self.saved = EXACT.add(self.saved, saved_by_hits(line.key, line.quantity))


@dataclass(slots=True)
class ReratedRow:
    """Sums of one group, by currency; "" are requests without a price."""

    group: tuple[str, ...]
    charged: dict[str, Sum] = field(default_factory=dict)
    rerated: dict[str, Sum] = field(default_factory=dict)


def rerated_rows(
    connection: Connection,
    query: RerateQuery,
    book: PriceBook,
    stopping: Callable[[], bool] = lambda: False,
) -> list[ReratedRow]:
    """Rows ordered by group. Raises TooManyRowsError, and ShuttingDownError when told to stop."""
    versions = stored_versions(connection)
    rows: dict[tuple[str, ...], ReratedRow] = {}
    with closing(_events(connection, query)) as events:
        for number, found in enumerate(events):
            if number % _ROWS_AT_ONCE == 0 and stopping():
                raise ShuttingDownError("the service stops before the period was rated to its end")
            group = tuple(map(group_label, query.group_by, found[: len(query.group_by)]))
            row = rows.get(group)
            if row is None:
                if len(rows) >= ROWS_MAX:
                    raise TooManyRowsError(
                        f"more than {ROWS_MAX} rows; name a tenant, a shorter period or fewer"
                        " groups"
                    )
                row = rows[group] = ReratedRow(group)
            facts = facts_of(event_from_text(found.event))
            then = versions[PriceId(found.price_id)] if found.price_id is not None else None
            other = book.version_for(facts.end_time_ns, facts.model)
            for version, sums in ((then, row.charged), (other, row.rerated)):
                currency = version.currency if version is not None else ""
                lines = rated_lines(facts, version) if version is not None else ()
                sums.setdefault(currency, Sum()).add(lines)
    return [rows[group] for group in sorted(rows)]


def _events(connection: Connection, query: RerateQuery) -> Generator[Any]:
    columns = group_columns(query.group_by)
    conditions = usage_of_period(query.period, query.tenant_id, "")
    statement = (
        select(*columns, entries.c.event, entries.c.price_id)
        .where(and_(True, *conditions))
        .order_by(entries.c.position)
    )
    with connection.execution_options(yield_per=_ROWS_AT_ONCE).execute(statement) as result:
        yield from result
