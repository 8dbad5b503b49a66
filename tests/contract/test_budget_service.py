"""What `budget.proto` promises, asked over gRPC of a real billing service in this process."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from billing.server import start_billing
from billing.settings import BillingSettings
from kvtier.errors import WireError, read_error
from kvtier.tls import SecuritySettings
from kvtier.v1 import budget_pb2 as pb
from kvtier.v1 import budget_pb2_grpc, usage_pb2, usage_pb2_grpc

NOW = 1_755_000_000 * 10**9

Stub = Any
BOOK = """
format = 2
[[versions]]
name = "one a token"
effective_time = 2025-01-01T00:00:00Z
currency = "CNY"
source = "test"
[[versions.prices]]
model = "demo*"
per = 1
hit = "0.1"
miss = "1"
output = "2"
"""


@pytest.fixture(params=["sqlite", "postgres"])
async def channel(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[grpc.aio.Channel]:
    (tmp_path / "prices.toml").write_text(BOOK)
    url = ""
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_server").new_database()
    settings = BillingSettings(
        listen="127.0.0.1:0",
        data_directory=tmp_path / "billing",
        price_book=tmp_path / "prices.toml",
        security=SecuritySettings(development=True),
        database_url=url,
    )
    billing = await start_billing(settings, lambda: NOW)
    async with grpc.aio.insecure_channel(billing.listen) as channel:
        yield channel
    await billing.drain()


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> Stub:
    return budget_pb2_grpc.BudgetServiceStub(channel)


def asked(name: str, **changes: Any) -> pb.ReserveBudgetRequest:
    fields = {
        "request_id": name,
        "tenant_id": "acme",
        "model": "demo",
        "prompt_tokens": 100,
        "completion_tokens": 10,
    }
    request = pb.ReserveBudgetRequest(**(fields | changes))
    request.deadline_time.FromNanoseconds(NOW + 60 * 10**9)
    return request


async def set_budget(stub: Stub, **said: Any) -> pb.SetBudgetResponse:
    budget = pb.Budget(**({"tenant_id": "acme"} | said))
    request = pb.SetBudgetRequest(budget_id="b", budget=budget, reason="test", operator="ann")
    return await stub.SetBudget(request)


async def top_up(stub: Stub, amount: str) -> None:
    await stub.FundBalance(
        pb.FundBalanceRequest(
            funding_id=f"f{amount}",
            tenant_id="acme",
            kind=pb.FUNDING_KIND_TOP_UP,
            amount=amount,
            currency_code="CNY",
            reason="test",
            operator="ann",
        )
    )


async def refusal(call: Any) -> WireError:
    with pytest.raises(grpc.RpcError) as failed:
        await call
    return read_error(failed.value)


async def test_a_request_is_held_settled_and_refused_by_name(
    stub: Stub, channel: grpc.aio.Channel
) -> None:
    free = await stub.ReserveBudget(asked("free"))
    assert (free.amount, free.HasField("expire_time")) == ("0", False)
    await set_budget(stub, balance_required=True)
    await top_up(stub, "150")
    made = await stub.ReserveBudget(asked("r1"))
    assert (made.amount, made.currency_code, made.already_there) == ("120", "CNY", False)
    assert made.expire_time.seconds == NOW // 10**9 + 60 + 900
    assert (await stub.ReserveBudget(asked("r1"))).already_there
    (balance,) = (await stub.GetBalance(pb.GetBalanceRequest(tenant_id="acme"))).balances
    assert (balance.total_amount, balance.held_amount) == ("150", "120")
    refused = await refusal(stub.ReserveBudget(asked("r2")))
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "INSUFFICIENT_BALANCE",
    )
    other = await refusal(stub.ReserveBudget(asked("r1", prompt_tokens=99)))
    assert (other.code, other.reason) == (
        grpc.StatusCode.ALREADY_EXISTS,
        "RESERVATION_CONFLICT",
    )
    event = usage_pb2.UsageEvent(
        request_id="r1",
        schema_version=1,
        tenant_id="acme",
        model="demo",
        end_reason=usage_pb2.END_REASON_STOP,
        tokens=usage_pb2.TokenUsage(prompt_tokens=9, miss_tokens=9, completion_tokens=3),
    )
    event.start_time.FromNanoseconds(NOW)
    event.end_time.FromNanoseconds(NOW)
    usage = usage_pb2_grpc.UsageServiceStub(channel)
    await usage.RecordUsage(usage_pb2.RecordUsageRequest(events=[event]))
    (balance,) = (await stub.GetBalance(pb.GetBalanceRequest(tenant_id="acme"))).balances
    assert (balance.total_amount, balance.held_amount) == ("135", "0")
    assert (await stub.ReserveBudget(asked("r2"))).amount == "120"
    assert (await stub.ReleaseBudget(pb.ReleaseBudgetRequest(request_id="r2"))).released
    assert not (await stub.ReleaseBudget(pb.ReleaseBudgetRequest(request_id="r2"))).released
    assert (await usage.VerifyLedger(usage_pb2.VerifyLedgerRequest())).verified


async def test_a_quota_says_when_to_come_again(stub: Stub) -> None:
    await set_budget(stub, requests_per_minute=1)
    await stub.ReserveBudget(asked("r1"))
    refused = await refusal(stub.ReserveBudget(asked("r2")))
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "QUOTA_EXCEEDED",
    )
    assert refused.metadata["retry_after_seconds"] == "60"
    assert refused.metadata["quota"] == "requests_per_minute"


async def test_hundreds_at_once_hold_what_there_is_and_no_more(stub: Stub) -> None:
    await set_budget(stub, balance_required=True)
    await top_up(stub, "12000")

    async def one(number: int) -> str:
        try:
            return str((await stub.ReserveBudget(asked(f"r{number}"))).amount)
        except grpc.RpcError as error:
            return read_error(error).reason

    answers = Counter(await asyncio.gather(*(one(number) for number in range(300))))
    assert answers == {"120": 100, "INSUFFICIENT_BALANCE": 200}


async def test_budgets_and_alerts_are_listed(stub: Stub) -> None:
    limit = pb.SpendLimit(
        amount="240", currency_code="CNY", period=pb.BUDGET_PERIOD_DAY, time_zone="Asia/Shanghai"
    )
    done = await set_budget(stub, limit=limit, alert_percents=[50], tokens_per_minute=1000)
    assert (done.ledger_position, done.already_there) == (1, False)
    assert (
        await set_budget(stub, limit=limit, alert_percents=[50], tokens_per_minute=1000)
    ).already_there
    await stub.ReserveBudget(asked("r1"))
    found = await stub.ListBudgets(pb.ListBudgetsRequest(tenant_id="acme"))
    (status,) = found.budgets
    assert status.budget.limit == limit
    assert (status.spent_amount, status.held_amount, status.held_request_count) == ("0", "120", 1)
    assert status.budget.tokens_per_minute == 1000
    assert not status.budget.HasField("requests_per_minute")
    assert status.period_end_time.seconds - status.period_start_time.seconds == 86_400
    assert not (await stub.ListBudgets(pb.ListBudgetsRequest(tenant_id="beta"))).budgets
    assert not (await stub.ListBudgetAlerts(pb.ListBudgetAlertsRequest())).alerts


@pytest.mark.parametrize(
    ("call", "reason", "code"),
    [
        (lambda s: s.ReserveBudget(asked("")), "INVALID_RESERVATION", "INVALID_ARGUMENT"),
        (
            lambda s: s.ReserveBudget(pb.ReserveBudgetRequest()),
            "INVALID_RESERVATION",
            "INVALID_ARGUMENT",
        ),
        (lambda s: set_budget(s, requests_per_minute=-1), "BUDGET_REFUSED", "INVALID_ARGUMENT"),
        (
            lambda s: set_budget(s, limit=pb.SpendLimit(amount="1")),
            "BUDGET_REFUSED",
            "INVALID_ARGUMENT",
        ),
        (lambda s: s.SetBudget(pb.SetBudgetRequest()), "BUDGET_REFUSED", "INVALID_ARGUMENT"),
        (
            lambda s: s.FundBalance(pb.FundBalanceRequest()),
            "FUNDING_REFUSED",
            "FAILED_PRECONDITION",
        ),
    ],
)
async def test_bad_input_has_its_reason(stub: Stub, call: Any, reason: str, code: str) -> None:
    refused = await refusal(call(stub))
    assert (refused.reason, refused.code) == (reason, grpc.StatusCode[code])
