"""Sums of tokens by group, model and price version: whole hours from the rollups, what is left of a
period at either end from the entries. The same figures to the last token.

Reads one snapshot; runs on a reader's thread.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, literal, select

from billing.entry_filter import usage_of_period
from billing.ledger_schema import UNKNOWN, entries, rollups
from billing.period import DAY_NS, HOUR_NS, Period

__all__ = ["token_sums"]

_HOURS_OF_DAY = DAY_NS // HOUR_NS
_TOKENS = ("hit_gpu", "hit_host", "hit_ssd", "hit_shared", "miss", "output")


def token_sums(
    connection: Connection,
    period: Period,
    tenant_id: str = "",
    project_id: str = "",
    group_by: Sequence[str] = (),
    limit: int | None = None,
) -> Iterator[Any]:
    """Rows of the dimensions in `group_by`, in order, then `price_model`, `price_id` (None:
    unrated), `ttl_class`, `cache_write`, `request_count` and the tokens. A group may come in
    several rows; at most `limit` of each part of the period.
    """
    whole, edges = _parts(period)
    for edge in edges:
        yield from connection.execute(
            _of_entries(edge, tenant_id, project_id, group_by).limit(limit)
        )
    if whole is not None:
        yield from connection.execute(
            _of_rollups(whole, tenant_id, project_id, group_by).limit(limit)
        )


Hours = tuple[int | None, int | None]


def _parts(period: Period) -> tuple[Hours | None, list[Period]]:
    """Whole hours, from the first up to the last, and what is left at the ends."""
    start, end = period.start_ns, period.end_ns
    first = None if start is None else -(-start // HOUR_NS)
    last = None if end is None else end // HOUR_NS
    if first is not None and last is not None and first >= last:
        return None, [period]
    edges = []
    if start is not None and first is not None and start < first * HOUR_NS:
        edges.append(Period(start, first * HOUR_NS))
    if end is not None and last is not None and last * HOUR_NS < end:
        edges.append(Period(last * HOUR_NS, end))
    return (first, last), edges


def _of_rollups(hours: Hours, tenant_id: str, project_id: str, group_by: Sequence[str]) -> Any:
    columns: dict[str, ColumnElement[Any]] = {
        "tenant": rollups.c.tenant_id,
        "project": rollups.c.project,
        "key": rollups.c.key,
        "model": rollups.c.model,
        "day": rollups.c.hour // _HOURS_OF_DAY,
        "hour": rollups.c.hour,
    }
    first, last = hours
    conditions: list[ColumnElement[bool]] = []
    if first is not None:
        conditions.append(rollups.c.hour >= first)
    if last is not None:
        conditions.append(rollups.c.hour < last)
    if tenant_id:
        conditions.append(rollups.c.tenant_id == tenant_id)
    if project_id:
        conditions.append(rollups.c.project == project_id)
    split = (rollups.c.model, rollups.c.price_id, rollups.c.ttl_class)
    return (
        select(
            *(columns[name].label(name) for name in group_by),
            rollups.c.model.label("price_model"),
            func.nullif(rollups.c.price_id, "").label("price_id"),
            rollups.c.ttl_class,
            func.sum(rollups.c.cache_write).label("cache_write"),
            func.sum(rollups.c.request_count).label("request_count"),
            *(func.sum(rollups.c[name]).label(name) for name in _TOKENS),
        )
        .where(*conditions)
        .group_by(*(columns[name] for name in group_by), *split)
    )


def _of_entries(period: Period, tenant_id: str, project_id: str, group_by: Sequence[str]) -> Any:
    columns: dict[str, ColumnElement[Any]] = {
        "tenant": entries.c.tenant_id,
        "project": func.coalesce(entries.c.project_id, literal(UNKNOWN)),
        "key": func.coalesce(entries.c.key_id, literal(UNKNOWN)),
        "model": entries.c.model,
        "day": entries.c.end_time_ns // DAY_NS,
        "hour": entries.c.end_time_ns // HOUR_NS,
    }
    split = (entries.c.model, entries.c.price_id, entries.c.cache_write_ttl_class)
    chosen = [columns[name].label(name) for name in group_by]
    return (
        select(
            *chosen,
            entries.c.model.label("price_model"),
            entries.c.price_id,
            entries.c.cache_write_ttl_class.label("ttl_class"),
            func.sum(entries.c.cache_write).label("cache_write"),
            func.count().label("request_count"),
            *(func.sum(entries.c[name]).label(name) for name in _TOKENS),
        )
        .where(*usage_of_period(period, tenant_id, project_id))
        .group_by(*chosen, *split)
    )
