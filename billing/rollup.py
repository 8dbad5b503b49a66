"""Rollups: sums of the entries by hour and by everything that reports group by, kept up with each
transaction, so that a month of ten million events is read from some thousands of rows.

Invariant: what they say follows from the entries alone, to the last token, and `verify` holds them
to it. Pure but for `add_rollups`, which runs in the writer's transaction.
"""

from collections import defaultdict
from typing import Any

from sqlalchemy import Connection

from billing.ledger_rows import add_rows
from billing.ledger_schema import UNKNOWN, rollups
from billing.period import HOUR_NS
from billing.usage import UsageEvent

__all__ = ["ROLLUP_KEYS", "ROLLUP_SUMS", "Rollups", "add_rollups"]

ROLLUP_KEYS = ("hour", "tenant_id", "project", "key", "model", "price_id", "ttl_class")
ROLLUP_SUMS = (
    "request_count",
    "hit_gpu",
    "hit_host",
    "hit_ssd",
    "hit_shared",
    "miss",
    "output",
    "cache_write",
)

Key = tuple[int, str, str, str, str, str, str]


class Rollups:
    """Sums of some events."""

    def __init__(self) -> None:
        self._sums: defaultdict[Key, list[int]] = defaultdict(lambda: [0] * len(ROLLUP_SUMS))

    def add(self, event: UsageEvent, price_id: str | None) -> None:
        """`event`: one that was accepted, rated under `price_id`."""
        assert event.end_time_ns is not None, "accepted events have ended"
        tokens = event.tokens
        sums = self._sums[
            event.end_time_ns // HOUR_NS,
            event.tenant_id,
            UNKNOWN if event.project_id is None else event.project_id,
            UNKNOWN if event.key_id is None else event.key_id,
            event.model,
            price_id or "",
            tokens.cache_write_ttl_class,
        ]
        sums[0] += 1
        sums[1] += tokens.hit_gpu
        sums[2] += tokens.hit_host
        sums[3] += tokens.hit_ssd
        sums[4] += tokens.hit_shared
        sums[5] += tokens.miss
        sums[6] += tokens.output
        sums[7] += tokens.cache_write

    def rows(self) -> list[dict[str, Any]]:
        """As the table has them."""
        return [
            dict(zip((*ROLLUP_KEYS, *ROLLUP_SUMS), (*key, *sums), strict=True))
            for key, sums in sorted(self._sums.items())
        ]


def add_rollups(connection: Connection, made: Rollups) -> None:
    """Adds sums to those that the ledger has."""
    rows = made.rows()
    if rows:
        add_rows(connection, rollups, rows, ROLLUP_KEYS)
