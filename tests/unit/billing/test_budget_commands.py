"""`kvtier budget`, against a real billing service in this process."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from billing.budget_commands import app
from billing.server import RunningBilling, start_billing
from billing.settings import BillingSettings
from kvtier.tls import SecuritySettings

NOW = 1_755_000_000 * 10**9

FUND = ("--tenant", "acme", "--currency", "CNY", "--reason", "order 81")


@pytest.fixture
async def billing(tmp_path: Path) -> AsyncIterator[RunningBilling]:
    settings = BillingSettings(
        listen="127.0.0.1:0",
        data_directory=tmp_path / "billing",
        security=SecuritySettings(development=True),
    )
    running = await start_billing(settings, lambda: NOW)
    yield running
    await running.drain()


async def run(billing: RunningBilling, *arguments: str) -> Any:
    words = [*arguments, "--address", billing.listen]
    return await asyncio.to_thread(CliRunner().invoke, app, words)


async def said(billing: RunningBilling, *arguments: str) -> Any:
    result = await run(billing, *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


async def test_money_goes_in_and_out_and_is_shown(billing: RunningBilling) -> None:
    paid = await said(billing, "top-up", *FUND, "--amount", "100", "--id", "order-81")
    assert (paid["kind"], paid["amount"], paid["position"]) == ("top_up", "100", 1)
    again = await said(billing, "top-up", *FUND, "--amount", "100.00", "--id", "order-81")
    assert (again["already_there"], again["position"]) == (True, 1)
    given = await said(billing, "grant", *FUND, "--amount", "5.5", "--expires", "2026-01-01")
    assert given["expires"] == "2026-01-01T00:00:00Z"
    await said(billing, "withdraw", *FUND, "--amount", "20")
    shown = await said(billing, "show", "--tenant", "acme")
    (balance,) = shown["balances"]
    assert (balance["total"], balance["granted"], balance["topped_up"]) == ("85.5", "5.5", "80")
    assert balance["held"] == "0"
    assert [(g["position"], g["left"]) for g in balance["grants"]] == [(2, "5.5")]
    table = await run(billing, "show", "--tenant", "acme")
    assert "85.5" in table.stdout
    assert "topped up" in table.stdout


async def test_a_line_says_what_was_done(billing: RunningBilling) -> None:
    done = await run(billing, "top-up", *FUND, "--amount", "100", "--id", "order-81")
    assert done.stdout == "top_up of 100 CNY for acme: id order-81, entry 1\n"


async def test_who_never_paid_has_no_balance(billing: RunningBilling) -> None:
    assert (await said(billing, "show", "--tenant", "nobody"))["balances"] == []
    told = await run(billing, "show", "--tenant", "nobody")
    assert told.stdout == "Nothing was ever paid in or granted.\n"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("withdraw", *FUND, "--amount", "1"), "FUNDING_REFUSED"),
        (("top-up", *FUND, "--amount", "-1"), "FUNDING_REFUSED"),
        (("top-up", *FUND, "--amount", "1e3"), "FUNDING_REFUSED"),
        (("grant", *FUND, "--amount", "1", "--expires", "2020-01-01"), "FUNDING_REFUSED"),
        (("top-up", *FUND, "--amount", "2", "--id", "one"), "FUNDING_CONFLICT"),
    ],
)
async def test_what_does_not_fit_is_one_line_with_its_reason(
    billing: RunningBilling, words: tuple[str, ...], reason: str
) -> None:
    if reason == "FUNDING_CONFLICT":
        await said(billing, "top-up", *FUND, "--amount", "1", "--id", "one")
    result = await run(billing, *words)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"kvtier budget: {reason}: ")
    assert len(result.stderr.splitlines()) == 1


async def test_a_budget_is_set_shown_and_taken_away(billing: RunningBilling) -> None:
    words = ("set", "--tenant", "acme", "--reason", "a plan")
    assert (await run(billing, "list")).stdout == "No budgets: everything is let in.\n"
    made = await said(
        billing,
        *words,
        "--balance",
        *("--limit", "100", "--currency", "CNY", "--period", "day", "--zone", "Asia/Shanghai"),
        *("--alerts", "50,80%,95", "--requests-per-minute", "600", "--tokens-per-day", "1000000"),
    )
    assert (made["position"], made["already_there"]) == (1, False)
    (found,) = (await said(billing, "list", "--tenant", "acme"))["budgets"]
    assert (found["limit"], found["currency"], found["period"]) == ("100", "CNY", "day")
    assert (found["alert_percents"], found["tokens_per_minute"]) == ([50, 80, 95], None)
    assert (found["balance_required"], found["spent"], found["held"]) == (True, "0", "0")
    table = (await run(billing, "list")).stdout
    for text in ("required", "100 CNY (day, Asia/Shanghai)", "600 requests/min", "50%, 80%, 95%"):
        assert text in table
    await said(billing, *words, "--none")
    assert (await said(billing, "list"))["budgets"] == []


async def test_alerts_are_listed(billing: RunningBilling) -> None:
    assert (await said(billing, "alerts"))["alerts"] == []
    assert (await run(billing, "alerts")).stdout == "No threshold was passed.\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "say what is limited"),
        (("--none", "--balance"), "not both"),
        (("--currency", "CNY", "--balance"), "of a --limit"),
        (("--alerts", "half"), "50,80,95"),
    ],
)
async def test_a_budget_that_says_nothing_clear_is_no_budget(
    billing: RunningBilling, words: tuple[str, ...], says: str
) -> None:
    result = await run(billing, "set", "--tenant", "acme", "--reason", "test", *words)
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.replace("│", " ").split())
