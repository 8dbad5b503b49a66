"""Releases against a real server that answers as it is told: they go on until they are taken, are
given up after so many refusals, and one that is refused keeps no other back.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from kvtier.v1 import budget_pb2, budget_pb2_grpc
from worker import budget_client
from worker.budget_client import REFUSALS_MAX, BudgetClient

Code = grpc.StatusCode


class Billing(budget_pb2_grpc.BudgetServiceServicer):
    def __init__(self) -> None:
        self.refusing: dict[str, grpc.StatusCode] = {}
        self.calls: Counter[str] = Counter()
        self.released: list[str] = []

    async def ReleaseBudget(self, request: Any, context: Any) -> budget_pb2.ReleaseBudgetResponse:
        self.calls[request.request_id] += 1
        if request.request_id in self.refusing:
            await context.abort(self.refusing[request.request_id], "no")
        self.released.append(request.request_id)
        return budget_pb2.ReleaseBudgetResponse(released=True)


class World:
    def __init__(self, client: BudgetClient, billing: Billing, given_up: list[int]) -> None:
        self.client, self.billing, self.given_up = client, billing, given_up

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.005)


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(budget_client, "_BACKOFF_SECONDS_MAX", 0.02)
    billing, server = Billing(), grpc.aio.server()
    budget_pb2_grpc.add_BudgetServiceServicer_to_server(billing, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    given_up: list[int] = []
    client = BudgetClient(f"127.0.0.1:{port}", None, lambda: given_up.append(1))
    client.start()
    yield World(client, billing, given_up)
    await client.close(5)
    await server.stop(0)


@pytest.mark.parametrize("code", [Code.INTERNAL, Code.UNKNOWN, Code.UNAVAILABLE, Code.CANCELLED])
async def test_a_release_that_failed_is_sent_again(world: World, code: grpc.StatusCode) -> None:
    world.billing.refusing["r1"] = code
    world.client.release("r1")
    await world.until(lambda: world.billing.calls["r1"] >= 2)
    del world.billing.refusing["r1"]
    await world.until(lambda: world.billing.released == ["r1"])
    await world.until(lambda: world.client.waiting_releases == 0)
    assert world.given_up == []


async def test_one_that_is_always_refused_is_given_up_and_keeps_no_other_back(
    world: World,
) -> None:
    world.billing.refusing["bad"] = Code.INTERNAL
    for name in ("bad", "r1", "r2"):
        world.client.release(name)
    await world.until(lambda: world.client.waiting_releases == 0)
    assert sorted(world.billing.released) == ["r1", "r2"]
    assert (world.billing.calls["bad"], len(world.given_up)) == (REFUSALS_MAX, 1)


async def test_an_error_of_another_kind_ends_no_releasing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []
    call = world.client._stub.ReleaseBudget

    async def broken(request: Any, timeout: float) -> Any:
        tries.append(1)
        if len(tries) == 1:
            raise ValueError("not of gRPC")
        if len(tries) == 2:
            raise asyncio.CancelledError
        return await call(request, timeout=timeout)

    monkeypatch.setattr(world.client._stub, "ReleaseBudget", broken)
    world.client.release("r1")
    await world.until(lambda: world.billing.released == ["r1"])


async def test_what_no_place_is_left_for_is_given_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget_client, "RELEASES_MAX", 2)
    for name in ("r1", "r2", "r3"):
        world.client.release(name)  # nothing is sent before this task waits
    assert (world.client.waiting_releases, len(world.given_up)) == (2, 1)
    await world.until(lambda: world.billing.released == ["r2", "r3"])
