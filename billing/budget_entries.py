"""How a budget becomes an entry: once per id. Runs in the writer's transaction, on its thread."""

from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, select

from billing.budget import (
    BUDGET_KIND,
    BUDGET_PREFIX,
    EVERY_TENANT,
    Budget,
    BudgetSet,
    budget_from_text,
    budget_text,
)
from billing.budget_period import zone_problem
from billing.entry import Entry, EntryHash
from billing.errors import BudgetConflictError, BudgetRefusedError
from billing.ledger_rows import insert_rows
from billing.ledger_schema import entries
from billing.meter import Head, plain_row

__all__ = ["SetDone", "budget_entry", "budget_row", "check_budget", "set_budget"]

TEXT_CHARACTERS_MAX = 1024
CURRENCY_CHARACTERS_MAX = 16
ALERTS_MAX = 8
PERCENT_MAX = 1_000
QUOTA_MAX = 10**12


@dataclass(frozen=True, slots=True)
class SetDone:
    """A budget that is in the ledger."""

    position: int
    made: BudgetSet
    head: Head
    """After it."""
    again: bool = False
    """It was there already."""


def set_budget(connection: Connection, head: Head, made: BudgetSet) -> SetDone:
    """Adds the entry, or finds that it is there. Raises BudgetRefusedError, BudgetConflictError."""
    check_budget(made)
    name = BUDGET_PREFIX + made.budget_id
    query = select(entries.c.position, entries.c.event).where(entries.c.request_id == name)
    known = connection.execute(query).one_or_none()
    if known is not None:
        found = budget_from_text(known.event)
        if replace(made, operator=found.operator, time_ns=found.time_ns) != found:
            raise BudgetConflictError(
                f'"{made.budget_id}" set another budget already; give a new one another id',
                position=known.position,
            )
        return SetDone(known.position, found, head, again=True)
    entry = budget_entry(made, head.position + 1, made.time_ns)
    after = replace(head, position=entry.position, hash=entry.hash_after(head.hash))
    insert_rows(connection, entries, [budget_row(entry, made, after.hash)])
    return SetDone(entry.position, made, after)


def budget_entry(made: BudgetSet, position: int, recorded_time_ns: int) -> Entry:
    return Entry(position, recorded_time_ns, budget_text(made), None, ())


def budget_row(entry: Entry, made: BudgetSet, entry_hash: EntryHash) -> dict[str, Any]:
    scope = made.budget.scope
    return plain_row(
        entry,
        entry_hash,
        request_id=BUDGET_PREFIX + made.budget_id,
        tenant_id=scope.tenant_id,
        project_id=scope.project_id or None,
        key_id=scope.key_id or None,
        end_time_ns=made.time_ns,
        kind=BUDGET_KIND,
    )


def check_budget(made: BudgetSet) -> None:
    """Raises BudgetRefusedError for what no ledger takes."""
    scope = made.budget.scope
    must = {
        "budget_id": made.budget_id,
        "tenant_id": scope.tenant_id,
        "reason": made.reason,
        "operator": made.operator,
    }
    for name, text in {**must, "project_id": scope.project_id, "key_id": scope.key_id}.items():
        if name in must and not text:
            raise BudgetRefusedError(f"{name} must be said")
        if len(text) > TEXT_CHARACTERS_MAX or not text.isprintable():
            raise BudgetRefusedError(f"{name} is text of printable characters, at most 1,024")
    _check_scope(made.budget)
    _check_limit(made.budget)
    _check_alerts(made.budget)
    for name in ("requests_per_minute", "tokens_per_minute", "tokens_per_day"):
        count = getattr(made.budget, name)
        if count is not None and not 1 <= count <= QUOTA_MAX:
            raise BudgetRefusedError(f"{name} is from 1 to {QUOTA_MAX}; leave it out for no limit")


def _check_scope(budget: Budget) -> None:
    scope = budget.scope
    if scope.project_id and scope.key_id:
        raise BudgetRefusedError("a budget is of a project or of a key, not of both")
    narrow = scope.project_id or scope.key_id
    if narrow and scope.tenant_id == EVERY_TENANT:
        raise BudgetRefusedError("projects and keys are of one tenant; name it")
    if narrow and budget.balance_required:
        raise BudgetRefusedError("a balance is a tenant's; require it of the tenant's budget")


def _check_limit(budget: Budget) -> None:
    limit = budget.limit
    if limit is None:
        return
    currency = limit.currency
    if not 0 < len(currency) <= CURRENCY_CHARACTERS_MAX or not currency.isprintable():
        raise BudgetRefusedError("name the limit's currency, as the price book does")
    if problem := zone_problem(limit.zone):
        raise BudgetRefusedError(problem)


def _check_alerts(budget: Budget) -> None:
    percents = budget.alert_percents
    rising = list(percents) == sorted(set(percents))
    if not rising or len(percents) > ALERTS_MAX or any(not 1 <= p <= PERCENT_MAX for p in percents):
        raise BudgetRefusedError(
            f"alerts are at most {ALERTS_MAX} rising whole percents from 1 to {PERCENT_MAX}"
        )
    if percents and budget.limit is None and (budget.scope.project_id or budget.scope.key_id):
        raise BudgetRefusedError("alerts need a limit to be percents of")
