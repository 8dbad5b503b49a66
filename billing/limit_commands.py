"""`kvtier budget set`, `list` and `alerts`: what tenants, projects and keys may use."""

import getpass
import uuid
from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Any

import typer

from billing.balance_data import alert_data, budget_data
from billing.client import call_budgets
from billing.command_line import (
    DEFAULT_ADDRESS,
    Address,
    From,
    JsonOption,
    To,
    console,
    print_json,
)
from billing.command_values import option_text, set_period
from billing.tables import show_rows
from kvtier.v1 import budget_pb2

__all__ = ["add_limit_commands"]


class LimitPeriod(Enum):
    DAY = "day"
    MONTH = "month"


Tenant = Annotated[str, typer.Option(help="Only this tenant.")]
Project = Annotated[str, typer.Option(help="Only this project; needs --tenant.")]


def set_budget(
    tenant: Annotated[str, typer.Option(help='Whose; "*" is each without one of its own.')],
    reason: Annotated[str, typer.Option(help="For whoever reads the ledger.")],
    project: Annotated[str, typer.Option(help="Of one project of the tenant.")] = "",
    key: Annotated[str, typer.Option(help="Of one key of the tenant.")] = "",
    balance: Annotated[
        bool, typer.Option("--balance", help="What is left of the balance must cover a request.")
    ] = False,
    limit: Annotated[str, typer.Option(help="At most this much each period; 100")] = "",
    currency: Annotated[str, typer.Option(help="Of the limit, as the price book calls it.")] = "",
    period: Annotated[LimitPeriod, typer.Option(help="Of the limit.")] = LimitPeriod.MONTH,
    zone: Annotated[str, typer.Option(help="Its days are of; Asia/Shanghai")] = "UTC",
    soft: Annotated[bool, typer.Option("--soft", help="The limit only alerts.")] = False,
    alerts: Annotated[
        str, typer.Option(help="Percents of limit and balance, separated by commas.")
    ] = "",
    requests_per_minute: Annotated[int, typer.Option(min=0, help="0: as many as come.")] = 0,
    tokens_per_minute: Annotated[
        int, typer.Option(min=0, help="Weighted; 0: as many as come.")
    ] = 0,
    tokens_per_day: Annotated[int, typer.Option(min=0, help="The same, of a day.")] = 0,
    none: Annotated[bool, typer.Option("--none", help="Take all limits away.")] = False,
    id_: Annotated[
        str, typer.Option("--id", help="Of this setting: the same id happens once. Empty: new.")
    ] = "",
    operator: Annotated[str, typer.Option(help="Who says so. Empty: the user's name.")] = "",
    json_: JsonOption = False,
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """Sets all that a tenant, project or key may spend and ask for, in the place of what it might
    before."""
    budget = budget_pb2.Budget(
        tenant_id=option_text("--tenant", tenant),
        project_id=option_text("--project", project),
        key_id=option_text("--key", key),
        balance_required=balance,
        alert_percents=_percents(alerts),
        requests_per_minute=requests_per_minute or None,
        tokens_per_minute=tokens_per_minute or None,
        tokens_per_day=tokens_per_day or None,
    )
    if limit:
        budget.limit.CopyFrom(
            budget_pb2.SpendLimit(
                amount=option_text("--limit", limit),
                currency_code=option_text("--currency", currency),
                period=f"BUDGET_PERIOD_{period.name}",
                time_zone=option_text("--zone", zone),
                soft=soft,
            )
        )
    elif currency or soft:
        raise typer.BadParameter("--currency and --soft are of a --limit")
    bare = budget_pb2.Budget(tenant_id=tenant, project_id=project, key_id=key)
    if (budget == bare) is not none:
        raise typer.BadParameter("say what is limited, or --none, and not both")
    request = budget_pb2.SetBudgetRequest(
        budget_id=option_text("--id", id_) or str(uuid.uuid4()),
        budget=budget,
        reason=option_text("--reason", reason),
        operator=option_text("--operator", operator) or getpass.getuser(),
    )
    response = call_budgets(address, lambda stub, wait: stub.SetBudget(request, timeout=wait))
    position, there = response.ledger_position, response.already_there
    if json_:
        print_json({"budget_id": request.budget_id, "position": position, "already_there": there})
        return
    again = " (it was there already)" if there else ""
    console().print(f"budget set: entry {position}{again}", highlight=False)


def list_budgets(
    tenant: Tenant = "",
    project: Project = "",
    json_: JsonOption = False,
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """The budgets that hold, and how far they are used."""
    request = budget_pb2.ListBudgetsRequest(
        tenant_id=option_text("--tenant", tenant), project_id=option_text("--project", project)
    )
    response = call_budgets(address, lambda stub, wait: stub.ListBudgets(request, timeout=wait))
    found = [budget_data(each) for each in response.budgets]
    if json_:
        print_json({"budgets": found, "omitted": response.omitted_count})
        return
    if not found:
        console().print("No budgets: everything is let in.", highlight=False)
        return
    keys = ["tenant", "project", "key", "balance", "limit", "spent", "held", "rates", "alerts"]
    rows = [_row(each) for each in found]
    used = [key for key in keys if any(row[key] for row in rows)]
    show_rows(console(), "Budgets", used, rows, [])
    if response.omitted_count:
        console().print(f"and {response.omitted_count} more; name a tenant", style="yellow")


def alerts(
    tenant: Tenant = "",
    project: Project = "",
    from_: From = "",
    to: To = "",
    json_: JsonOption = False,
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """Thresholds that were passed, the newest first."""
    request = budget_pb2.ListBudgetAlertsRequest(
        tenant_id=option_text("--tenant", tenant), project_id=option_text("--project", project)
    )
    set_period(request, from_, to)
    response = call_budgets(
        address, lambda stub, wait: stub.ListBudgetAlerts(request, timeout=wait)
    )
    found = [alert_data(each) for each in response.alerts]
    if json_:
        print_json({"alerts": found})
        return
    if not found:
        console().print("No threshold was passed.", highlight=False)
        return
    keys = ["time", "kind", "tenant", "project", "key", "percent", "amount", "limit", "currency"]
    used = [key for key in keys if any(row[key] for row in found)]
    rows = [row | {"percent": f"{row['percent']}%"} for row in found]
    show_rows(console(), "Alerts", used, rows, [])


def add_limit_commands(app: typer.Typer) -> None:
    app.command("set", short_help="What somebody may spend and ask for.")(set_budget)
    app.command("list", short_help="Budgets, and how far they are used.")(list_budgets)
    app.command("alerts", short_help="Thresholds that were passed.")(alerts)


def _percents(text: str) -> list[int]:
    try:
        return [int(part.strip().removesuffix("%")) for part in text.split(",") if part.strip()]
    except ValueError:
        raise typer.BadParameter(f"{text} is no list as 50,80,95", param_hint="--alerts") from None


def _row(data: Mapping[str, Any]) -> dict[str, str]:
    rates = [
        f"{data[name]:,} {words}"
        for name, words in (
            ("requests_per_minute", "requests/min"),
            ("tokens_per_minute", "tokens/min"),
            ("tokens_per_day", "tokens/day"),
        )
        if data[name] is not None
    ]
    limited = data["limit"] is not None
    words = "soft, " if data["soft"] else ""
    limit = f"{data['limit']} {data['currency']} ({words}{data['period']}, {data['time_zone']})"
    return {
        "tenant": data["tenant"],
        "project": data["project"],
        "key": data["key"],
        "balance": "required" if data["balance_required"] else "",
        "limit": limit if limited else "",
        "spent": data["spent"] if limited else "",
        "held": data["held"] if limited else "",
        "rates": ", ".join(rates),
        "alerts": ", ".join(f"{percent}%" for percent in data["alert_percents"]),
    }
