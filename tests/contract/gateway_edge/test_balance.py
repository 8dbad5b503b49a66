"""`/user/balance`: DeepSeek's shape, the ledger's amounts."""

import asyncio
import http.client
import json
from typing import Any

import grpc
import pytest

from gateway.balances import balance_fields
from kvtier.channels import open_channel
from kvtier.v1 import budget_pb2 as pb
from kvtier.v1 import budget_pb2_grpc
from tests.contract.gateway_edge.conftest import Scripted, Stack
from tests.contract.gateway_edge.test_http_face import ask_raw, good


def ask(stack: Stack, path: str, key: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(stack.gateway.address, timeout=20)
    try:
        connection.request("GET", path, headers={"authorization": f"Bearer {key}"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_what_is_left_is_the_ledgers_and_the_keys_own_organisations(stack: Stack) -> None:
    mine, other = stack.key("prepaid"), stack.key("later")
    with open_channel(stack.billing) as channel:
        stub = budget_pb2_grpc.BudgetServiceStub(channel)
        for name, kind, amount in (
            ("f1", pb.FUNDING_KIND_TOP_UP, "100.5"),
            ("f2", pb.FUNDING_KIND_GRANT, "10"),
        ):
            stub.FundBalance(
                pb.FundBalanceRequest(
                    funding_id=name,
                    tenant_id="prepaid",
                    kind=kind,
                    amount=amount,
                    currency_code="CNY",
                    reason="test",
                    operator="test",
                )
            )
    for path in ("/user/balance", "/v1/user/balance"):
        status, told = ask(stack, path, mine)
        assert status == 200
        assert told["is_available"] is True
        (info,) = told["balance_infos"]
        assert set(info) == {"currency", "total_balance", "granted_balance", "topped_up_balance"}
        assert info["currency"] == "CNY"
        assert [float(info[f"{name}_balance"]) for name in ("total", "granted", "topped_up")] == [
            110.5, 10, 100.5,
        ]  # fmt: skip
        assert all(isinstance(each, str) for each in info.values())
    assert ask(stack, "/user/balance", other) == (
        200,
        {"is_available": True, "balance_infos": []},
    )
    assert ask(stack, "/user/balance", "nobody")[0] == 401


@pytest.mark.parametrize(
    ("amounts", "available"),
    [((), True), (("0",), False), (("-5",), False), (("0.000001",), True), (("-1", "2"), True)],
)
def test_available_is_who_has_something_left_or_pays_later(
    amounts: tuple[str, ...], available: bool
) -> None:
    balances = [pb.Balance(currency_code=str(n), total_amount=a) for n, a in enumerate(amounts)]
    told = balance_fields(pb.GetBalanceResponse(balances=balances))
    assert told["is_available"] == available
    assert [each["total_balance"] for each in told["balance_infos"]] == list(amounts)


async def test_without_billing_there_is_no_such_path_and_with_it_gone_503(
    scripted: Scripted,
) -> None:
    worker = await scripted.worker(good)
    await scripted.start(worker)
    bearer = f"Bearer {scripted.key}"
    told = await ask_raw(scripted.address, "GET /user/balance", authorization=bearer)
    assert (told[0], told[2]["error"]["code"]) == (404, "path_unknown")
    await scripted.start(worker, billing__address="127.0.0.1:1")
    told = await ask_raw(scripted.address, "GET /user/balance", authorization=bearer)
    assert (told[0], told[2]["error"]["code"]) == (503, "balance_unavailable")
    assert told[1]["retry-after"] == "1"


async def test_a_key_asks_for_so_many_balances_at_a_time_as_for_other_things(
    scripted: Scripted,
) -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    class Slow(budget_pb2_grpc.BudgetServiceServicer):
        async def GetBalance(self, request: Any, context: Any) -> pb.GetBalanceResponse:
            asked.set()
            await go.wait()
            return pb.GetBalanceResponse()

    server = grpc.aio.server()
    budget_pb2_grpc.add_BudgetServiceServicer_to_server(Slow(), server)
    billing = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        await scripted.start(
            await scripted.worker(good), billing__address=billing, limits__requests_per_key_max=1
        )
        bearer = f"Bearer {scripted.key}"
        path = "GET /user/balance"
        one = asyncio.create_task(ask_raw(scripted.address, path, authorization=bearer))
        async with asyncio.timeout(20):
            await asked.wait()
        told = await ask_raw(scripted.address, path, authorization=bearer)
        assert (told[0], told[2]["error"]["code"]) == (429, "rate_limit_exceeded")
        go.set()
        assert (await one)[0] == 200
        assert (await ask_raw(scripted.address, path, authorization=bearer))[0] == 200
    finally:
        await server.stop(None)
