"""A guided fuzzer for every call of the cache service: python -m tests.guided.calls [flags]

An input is a life of a fresh cache, up to 30 calls made as `tests/messages.py` makes them, some of
them raw bytes. Each ends in an answer or a typed refusal; then the cache must be whole, and hold
nothing once its sessions are closed.
"""

import asyncio
import contextlib
import inspect
import math
from collections.abc import AsyncIterator

import atheris

# Instrumented code never frees what a comparison of arrays gave (atheris 3): the directory, whose
# whole table every check compares, would grow past the limit by that alone.
with atheris.instrument_imports(
    include=["cache_service", "kvtier.keys", "storage.host"],
    exclude=["cache_service.block_directory"],
):
    from cache_service.cache import Cache
    from cache_service.edge.services import services
    from cache_service.intake import StreamIntake
    from cache_service.listener import QuietListener
    from cache_service.servicer import CacheServicer
    from cache_service.views import CacheLimits
    from storage.host.arena import HostArena

from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from kvtier.access import CALLER
from kvtier.errors import KvtierError
from kvtier.principals import Principal, Role
from kvtier.v1 import cache_pb2 as pb
from tests.guided.byte_choices import ByteChoices, chains
from tests.guided.running import fuzz
from tests.messages import BLOCK_BYTES, EVERY_ONE, Fuzzer

CALLS_MAX = 30
ANSWERS_MAX = 50
LIMITS = CacheLimits(max_blocks_per_call=64, room_wait_seconds=0.01, reservation_grace_seconds=1.0)


class Life:
    """One cache, from its start to its end."""

    def __init__(self, data: bytes) -> None:
        self.choices = ByteChoices(data)
        self.fuzzer = Fuzzer(self.choices, chains)
        self.now = 100.0
        self.arena = HostArena(24 * BLOCK_BYTES, extent_bytes=8 * BLOCK_BYTES)
        self.cache = Cache(self.arena, None, LIMITS, lambda: self.now, QuietListener())
        self.servicers = {
            service.name.rsplit(".", 1)[-1]: service.servicer
            for service in services(
                self.cache, CacheServicer(self.cache, StreamIntake(), "/nowhere")
            )
        }

    async def live(self) -> None:
        """Raises AssertionError, and what no call may raise."""
        CALLER.set(Principal("guided", frozenset(Role), frozenset(), math.inf))
        for transport in (pb.TRANSPORT_STREAM, pb.TRANSPORT_SHARED_MEMORY):
            request = pb.OpenSessionRequest(
                key_scheme_version=1,
                client_name="guided",
                namespace_id=bytes(range(32)),
                block_tokens=64,
                block_bytes=BLOCK_BYTES,
                transport=transport,
            )
            self.fuzzer.take(await self.servicers["CacheService"].OpenSession(request, None))
        for _ in range(CALLS_MAX):
            if self.choices.left <= 0:
                break
            if not self.choices.randrange(12):
                self.now += self.choices.choice([0.1, 5.0, 100.0])
                self.cache.tick()
            await self.call()
            self.cache.check_integrity()
        for session_id in self.fuzzer.ids["session_id"]:
            self.cache.close_session(session_id)
        await self.cache.drain()
        self.now += 10_000
        self.cache.tick()
        stats = self.cache.stats()
        assert (stats.lease_count, stats.reservation_count, stats.session_count) == (0, 0, 0)
        assert self.arena.slab_count == stats.tiers[0].block_count, "a slab leaked"

    async def call(self) -> None:
        method = self.choices.choice(EVERY_ONE)
        servicer = self.servicers.get(method.containing_service.name)
        if servicer is None:
            return
        count = self.choices.randint(1, 4) if method.client_streaming else 1
        try:
            requests = [self.message(method.input_type) for _ in range(count)]
        except DecodeError:
            return
        handler = getattr(servicer, method.name)
        with contextlib.suppress(KvtierError):
            answer = handler(_each(requests) if method.client_streaming else requests[0], None)
            if inspect.isasyncgen(answer):
                await self.take_all(answer)
            else:
                self.fuzzer.take(await answer)

    async def take_all(self, answers: "inspect.AsyncGeneratorType[Message, None]") -> None:
        async with contextlib.aclosing(answers):
            for _ in range(ANSWERS_MAX):
                answer = await anext(answers, None)
                if answer is None:
                    return
                self.fuzzer.take(answer)

    def message(self, kind: object) -> Message:
        if self.choices.randrange(6):
            return self.fuzzer.message(kind)
        message = GetMessageClass(kind)()  # type: ignore[arg-type]
        message.ParseFromString(self.choices.taken(self.choices.randrange(80)))
        return message


async def _each(requests: list[Message]) -> AsyncIterator[Message]:
    for request in requests:
        yield request


def one_input(data: bytes) -> None:
    """Raises whatever is wrong."""
    life = Life(data)
    try:
        asyncio.run(asyncio.wait_for(life.live(), 20))
    finally:
        life.arena.close()


if __name__ == "__main__":
    fuzz(one_input)
