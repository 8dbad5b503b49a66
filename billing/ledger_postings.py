"""Stored postings as verification walks them: each entry's, held against what it must have.

Runs on a reader's thread over one snapshot.
"""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from sqlalchemy import RowMapping

from billing.meter import posting_rows
from billing.money import EXACT, ZERO
from billing.rating import Posting

__all__ = ["BrokenError", "StoredPostings", "check_postings"]


class BrokenError(Exception):
    """Something does not hold at a position; 0: not at an entry."""

    def __init__(self, position: int, problem: str) -> None:
        super().__init__(problem)
        self.position = position


class StoredPostings:
    """Stored postings, handed out entry by entry in step with the walk."""

    def __init__(self, rows: Iterator[RowMapping]) -> None:
        self._groups = groupby(rows, key=lambda row: int(row["position"]))
        self._next = self._take()

    def of(self, position: int, expected: int) -> list[dict[str, Any]]:
        """Rows of `position`; raises BrokenError when rows belong to no entry before it."""
        if self._next is None or self._next[0] > position:
            return []
        found, rows = self._next
        if found < position:
            raise BrokenError(min(found, expected) or expected, "has postings but no entry")
        self._next = self._take()
        return rows

    def finish(self, expected: int) -> None:
        if self._next is not None:
            raise BrokenError(expected, "has postings but no entry")

    def _take(self) -> tuple[int, list[dict[str, Any]]] | None:
        group = next(self._groups, None)
        return None if group is None else (group[0], [dict(row) for row in group[1]])


def check_postings(position: int, rated: tuple[Posting, ...], stored: list[dict[str, Any]]) -> None:
    if posting_rows(position, rated) != stored:
        raise BrokenError(position, "its postings are not what rating its event gives")
    sums: dict[str, Any] = {}
    for posting in rated:
        sums[posting.currency] = EXACT.add(sums.get(posting.currency, ZERO), posting.amount)
    if any(sums.values()):
        raise BrokenError(position, "its postings do not sum to zero")
