"""Which entries of the ledger a question is about, as conditions of a query. Pure."""

from sqlalchemy import ColumnElement

from billing.ledger_schema import entries
from billing.period import Period

__all__ = ["of_period", "usage_of_period"]


def of_period(period: Period, tenant_id: str, project_id: str) -> list[ColumnElement[bool]]:
    """Usage events that ended, and corrections made, in `period`. Empty ids: all."""
    conditions: list[ColumnElement[bool]] = []
    if tenant_id:
        conditions.append(entries.c.tenant_id == tenant_id)
    if project_id:
        conditions.append(entries.c.project_id == project_id)
    if period.start_ns is not None:
        conditions.append(entries.c.end_time_ns >= period.start_ns)
    if period.end_ns is not None:
        conditions.append(entries.c.end_time_ns < period.end_ns)
    return conditions


def usage_of_period(period: Period, tenant_id: str, project_id: str) -> list[ColumnElement[bool]]:
    """Usage events alone."""
    return [entries.c.kind == "usage", *of_period(period, tenant_id, project_id)]
