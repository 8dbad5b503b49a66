"""A real worker and a real billing process: who may not be served is refused by name, everything
that is held is settled or released, and a kill -9 of billing in between changes none of it.
"""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from kvtier.errors import WireError, read_error
from kvtier.v1 import budget_pb2, budget_pb2_grpc, inference_pb2_grpc, usage_pb2, usage_pb2_grpc
from kvtier.v1 import inference_pb2 as pb
from tests.contract.worker_edge.starts import arguments, refuses

BOOK = """
format = 2
[[versions]]
name = "one a token"
effective_time = 2020-01-01T00:00:00Z
currency = "CNY"
source = "test"
[[versions.prices]]
model = "*"
per = 1
hit = "0.1"
miss = "1"
output = "2"
"""


class Billing:
    """A process, started and killed at will, always with the same ledger and address."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "prices.toml").write_text(BOOK)
        self.address = "127.0.0.1:0"
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "billing", "--set", "security.development=true"]
        for setting in (
            f"data_directory={self.directory / 'billing'}",
            f"price_book={self.directory / 'prices.toml'}",
            "log.level=ERROR",
            f"listen={self.address}",
        ):
            command += ["--set", setting]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.address = json.loads(self.process.stdout.readline())["listen"]

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()

    def call(
        self, method: str, request: Any, service: Any = budget_pb2_grpc.BudgetServiceStub
    ) -> Any:
        with grpc.insecure_channel(self.address) as channel:
            return getattr(service(channel), method)(request, timeout=30)

    def limit(self, **said: Any) -> None:
        budget = budget_pb2.Budget(tenant_id="acme", **said)
        name = str(time.monotonic_ns())
        self.call(
            "SetBudget",
            budget_pb2.SetBudgetRequest(
                budget_id=name, budget=budget, reason="test", operator="ann"
            ),
        )

    def top_up(self, amount: str) -> None:
        self.call(
            "FundBalance",
            budget_pb2.FundBalanceRequest(
                funding_id=str(time.monotonic_ns()),
                tenant_id="acme",
                kind=budget_pb2.FUNDING_KIND_TOP_UP,
                amount=amount,
                currency_code="CNY",
                reason="test",
                operator="ann",
            ),
        )

    def balance(self) -> tuple[str, str]:
        """(total, held)"""
        found = self.call("GetBalance", budget_pb2.GetBalanceRequest(tenant_id="acme"))
        return found.balances[0].total_amount, found.balances[0].held_amount

    def verified(self) -> bool:
        request, stub = usage_pb2.VerifyLedgerRequest(), usage_pb2_grpc.UsageServiceStub
        return bool(self.call("VerifyLedger", request, stub).verified)

    def settled(self) -> tuple[str, str]:
        """The balance once nothing is held any more."""
        until = time.monotonic() + 20
        while (found := self.balance())[1] != "0":
            assert time.monotonic() < until, f"still held: {found}"
            time.sleep(0.02)
        return found


@pytest.fixture
def billing(tmp_path: Path) -> Iterator[Billing]:
    service = Billing(tmp_path)
    service.start()
    yield service
    if service.process is not None and service.process.poll() is None:
        service.process.send_signal(signal.SIGTERM)
        service.process.communicate()


def ask(tokens: int = 40, output: int = 5, **changes: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        tenant_id=changes.pop("tenant_id", "acme"),
        tokens=pb.TokenPrompt(token_ids=[5 + n % 200 for n in range(tokens)]),
        max_completion_tokens=output,
        ignore_end_of_sequence=True,
        **changes,
    )


async def served(stub: Any, request: pb.GenerateRequest) -> pb.GenerateUsage | WireError:
    try:
        return [reply async for reply in stub.Generate(request, timeout=60)][-1].usage
    except grpc.RpcError as error:
        return read_error(error)


def enforced(billing: Billing, *more: str) -> tuple[str, ...]:
    return (
        f"billing.address={billing.address}",
        "billing.backoff_seconds_max=0.2",
        "budget.enforce=true",
        *more,
    )


async def test_a_prepaid_tenant_is_served_until_its_balance_is_used(start, billing) -> None:
    billing.limit(balance_required=True)
    _, stub = await start(*enforced(billing))
    refused = await served(stub, ask())
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "INSUFFICIENT_BALANCE",
    )
    assert refused.metadata["cost"] == "50"
    billing.top_up("90")
    usage = await served(stub, ask(cache_mode=pb.CACHE_MODE_BYPASS))
    assert (usage.tokens.miss_tokens, usage.tokens.completion_tokens) == (40, 5)
    assert await asyncio.to_thread(billing.settled) == ("40", "0")
    assert (await served(stub, ask())).reason == "INSUFFICIENT_BALANCE"
    assert (await served(stub, ask(20, 10))).tokens.completion_tokens == 10
    assert (await served(stub, ask(tenant_id="umbra"))).tokens.prompt_tokens == 40
    assert await asyncio.to_thread(billing.verified)


async def test_many_at_once_are_served_as_far_as_the_balance_goes(start, billing) -> None:
    billing.limit(balance_required=True)
    billing.top_up("500")
    _, stub = await start(*enforced(billing))
    request = ask(cache_mode=pb.CACHE_MODE_BYPASS)
    answers = await asyncio.gather(*(served(stub, request) for _ in range(40)))
    let_in = [each for each in answers if isinstance(each, pb.GenerateUsage)]
    others = {each.reason for each in answers if isinstance(each, WireError)}
    # Each holds 50 and costs that: whoever is refused was so while others were under way.
    assert len(let_in) == 10
    assert others == {"INSUFFICIENT_BALANCE"}
    assert await asyncio.to_thread(billing.settled) == ("0", "0")


async def test_a_cancelled_request_settles_for_what_it_used(start, billing) -> None:
    billing.limit(balance_required=True)
    billing.top_up("5000")
    _, stub = await start(*enforced(billing))
    call = stub.Generate(ask(100, 800), timeout=60)
    async for reply in call:
        if reply.HasField("delta"):
            break
    call.cancel()
    total, _ = await asyncio.to_thread(billing.settled)
    assert 5000 - 100 - 2 * 800 < float(total) < 5000 - 100


async def test_a_quota_is_told_with_when_to_come_again(start, billing) -> None:
    billing.limit(requests_per_minute=2)
    _, stub = await start(*enforced(billing))
    answers = [await served(stub, ask()) for _ in range(3)]
    assert answers[2].code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert answers[2].reason == "QUOTA_EXCEEDED"
    assert 1 <= int(answers[2].metadata["retry_after_seconds"]) <= 30


async def test_a_killed_billing_service_knows_what_was_held(start, billing) -> None:
    billing.limit(balance_required=True)
    billing.top_up("1710")
    _, stub = await start(*enforced(billing))
    call = stub.Generate(ask(100, 800), timeout=60)
    started = await anext(aiter(call))
    assert started.HasField("started")
    billing.kill()
    # While it is away nobody is served for nothing.
    refused = await served(stub, ask())
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "BUDGET_UNAVAILABLE")
    await asyncio.to_thread(billing.start)
    total, held = await asyncio.to_thread(billing.balance)
    assert (total, held) in (("1710", "1700"), ("10", "0"))
    usage = [reply async for reply in call][-1].usage
    assert usage.tokens.completion_tokens == 800
    assert await asyncio.to_thread(billing.settled) == ("10", "0")
    until = time.monotonic() + 20
    while (answer := await served(stub, ask(2, 4))).__class__ is WireError:
        assert answer.reason == "BUDGET_UNAVAILABLE"
        assert time.monotonic() < until
        await asyncio.sleep(0.1)
    assert answer.tokens.completion_tokens == 4
    assert await asyncio.to_thread(billing.settled) == ("0", "0")
    assert await asyncio.to_thread(billing.verified)


async def test_without_billing_an_allowance_serves_and_is_charged_later(start, billing) -> None:
    billing.limit(balance_required=True)
    billing.top_up("30")
    _, stub = await start(
        *enforced(billing, "budget.when_unavailable=admit", "budget.allowance_requests=2")
    )
    billing.kill()
    request = ask(cache_mode=pb.CACHE_MODE_BYPASS)
    answers = [await served(stub, request) for _ in range(3)]
    assert [each.tokens.completion_tokens for each in answers[:2]] == [5, 5]
    assert answers[2].reason == "BUDGET_UNAVAILABLE"
    await asyncio.to_thread(billing.start)

    def charged() -> str:
        until = time.monotonic() + 20
        while (total := billing.balance()[0]) == "30" and time.monotonic() < until:
            time.sleep(0.05)
        return total

    # 30 paid in, 100 used: what was served is charged, and below zero is told.
    await asyncio.to_thread(charged)
    until = time.monotonic() + 20
    while (await asyncio.to_thread(billing.balance))[0] != "-70" and time.monotonic() < until:
        await asyncio.sleep(0.05)
    assert await asyncio.to_thread(billing.balance) == ("-70", "0")
    alerts = billing.call("ListBudgetAlerts", budget_pb2.ListBudgetAlertsRequest()).alerts
    assert [alert.kind for alert in alerts] == [budget_pb2.BUDGET_ALERT_KIND_OVERDRAWN]


async def test_a_killed_worker_leaves_nothing_held_once_it_is_back(
    checkpoint, tmp_path, billing
) -> None:
    billing.limit(balance_required=True)
    billing.top_up("5000")
    words = arguments(
        checkpoint,
        tmp_path / "data",
        *enforced(billing),
        "tenants=acme",
        "drain_seconds=1",
        "log.level=ERROR",
    )

    def worker() -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-m", "worker", *words]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        return process, json.loads(process.stdout.readline())["listen"]

    process, address = await asyncio.to_thread(worker)
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            call = inference_pb2_grpc.InferenceServiceStub(channel).Generate(
                ask(100, 900), timeout=60
            )
            async for reply in call:
                if reply.HasField("delta"):
                    break
            process.send_signal(signal.SIGKILL)
            process.communicate()
        assert await asyncio.to_thread(billing.balance) == ("5000", "1900")
        process, address = await asyncio.to_thread(worker)
        # The worker's death is its own fault: nothing is charged.
        assert await asyncio.to_thread(billing.settled) == ("5000", "0")
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()


async def test_what_the_engine_does_not_take_is_released(start, billing) -> None:
    billing.limit(balance_required=True)
    billing.top_up("100000")
    _, stub = await start(
        *enforced(billing, "queue.running_requests_max=1", "queue.waiting_requests_max=1")
    )
    answers = await asyncio.gather(*(served(stub, ask(100, 200)) for _ in range(12)))
    reasons = {each.reason for each in answers if isinstance(each, WireError)}
    assert reasons == {"QUEUE_FULL"}
    _, held = await asyncio.to_thread(billing.settled)
    assert held == "0"


async def test_enforcing_without_billing_is_no_setting(checkpoint, tmp_path, capsys) -> None:
    line = refuses(capsys, arguments(checkpoint, tmp_path / "data", "budget.enforce=true"))
    assert "billing.address" in line
