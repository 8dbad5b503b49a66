"""Gives a ledger the rollups that a month of so many events leaves, for a benchmark of reports.

    python -m billing.bench.month DATA_DIRECTORY EVENTS        the address of a PostgreSQL, if any,
                                                               in KVTIER_BILLING_DATABASE_URL

The entries themselves are not written: whole hours of a report come from rollups alone, and a month
consists of whole hours. Such a ledger does not verify, and is good for nothing else.
"""

import os
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from sqlalchemy import select

from billing.ledger_postgres import PostgresStore
from billing.ledger_rows import insert_rows
from billing.ledger_schema import price_versions, rollups
from billing.ledger_sqlite import SqliteStore
from billing.ledger_store import LedgerStore
from billing.period import HOUR_NS
from billing.price_book_file import load_price_book

__all__ = ["MONTH_START_NS", "main"]

MONTH_START_NS = 1_761_955_200 * 10**9
"""1 November 2025, 00:00 UTC."""

HOURS = 30 * 24
TENANTS, PROJECTS, MODELS = 50, 2, 4
_ROWS_AT_ONCE = 10_000


def main() -> int:
    directory, events = Path(sys.argv[1]), int(sys.argv[2])
    url = os.environ.get("KVTIER_BILLING_DATABASE_URL", "")
    store: LedgerStore = PostgresStore(url) if url else SqliteStore(directory)
    version = load_price_book(None).versions[-1]
    with store.writer() as connection, connection.begin():
        row = {"price_id": version.id, "name": version.name, "text": version.text}
        if version.id not in connection.execute(select(price_versions.c.price_id)).scalars().all():
            insert_rows(connection, price_versions, [row])
        rows = list(_rows(events, version.id))
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            insert_rows(connection, rollups, rows[start : start + _ROWS_AT_ONCE])
    store.close()
    return 0


def _rows(events: int, price_id: str) -> Iterator[dict[str, Any]]:
    groups = HOURS * TENANTS * PROJECTS * MODELS
    first = MONTH_START_NS // HOUR_NS
    parts = product(range(HOURS), range(TENANTS), range(PROJECTS), range(MODELS))
    for number, (hour, tenant, project, model) in enumerate(parts):
        count = events * (number + 1) // groups - events * number // groups
        yield {
            "hour": first + hour,
            "tenant_id": f"tenant-{tenant}",
            "project": f"project-{project}",
            "key": "",
            "model": f"model-{model}",
            "price_id": price_id,
            "ttl_class": "",
            "request_count": count,
            "hit_gpu": count * 1_024,
            "hit_host": count * 2_944,
            "hit_ssd": count * 64,
            "hit_shared": 0,
            "miss": count * 64,
            "output": count * 150,
            "cache_write": 0,
        }


if __name__ == "__main__":
    sys.exit(main())
