"""Heartbeats: whoever does not take them is gone, and none comes after the end."""

import asyncio
from typing import Any

from gateway.exchange import Exchange, ExchangeLimits


class Caller:
    """Says nothing, and takes what is sent to it when a test lets it."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.waiting: list[asyncio.Event] = []
        self.takes = True

    async def receive(self) -> Any:
        await asyncio.Event().wait()

    async def send(self, message: Any) -> None:
        if not self.takes:
            self.waiting.append(asyncio.Event())
            await self.waiting[-1].wait()
        assert not self.sent or self.sent[-1] != b"data: [DONE]\n\n", "something after the end"
        if message["type"] == "http.response.body":
            self.sent.append(message["body"])


def exchange_with(caller: Caller, stall_seconds: float) -> Exchange:
    limits = ExchangeLimits(1024, 1.0, heartbeat_seconds=0.01, stall_seconds=stall_seconds)
    return Exchange({"headers": []}, caller.receive, caller.send, limits)


async def test_who_does_not_take_a_heartbeat_is_gone_and_its_request_is_ended() -> None:
    caller, told = Caller(), list[bool]()
    exchange = exchange_with(caller, stall_seconds=0.05)
    await exchange.open_stream()
    caller.takes = False
    async with asyncio.timeout(20):
        await exchange.watch(lambda: told.append(exchange.gone))
    assert told == [True]


async def test_no_heartbeat_comes_after_the_end_of_a_stream() -> None:
    caller = Caller()
    exchange = exchange_with(caller, stall_seconds=20)
    await exchange.open_stream()
    caller.takes = False

    async def last_words() -> None:
        await exchange.event("last")
        await exchange.close_stream(done=True)

    speaking = asyncio.create_task(last_words())
    watching = asyncio.create_task(exchange.watch(lambda: None))
    async with asyncio.timeout(20):
        while not caller.waiting:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # a heartbeat is due, and waits too
        caller.takes = True
        caller.waiting[0].set()
        await speaking
        for each in caller.waiting:
            each.set()
        await asyncio.sleep(0.05)
    assert not watching.done()
    watching.cancel()
    assert caller.sent[0] == b'data: "last"\n\n'
    assert caller.sent[-1] == b"data: [DONE]\n\n"
