"""An engine that does what engines do on bad days, in front of a good one."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from storage.errors import TierIOError
from storage.shared.objects import ObjectStore

Spoil = Callable[[str, bytes], bytes | None]


class FaultyStore:
    """Passes on; `before` runs before each call and may hang or raise, `after` after a read, and
    `spoil` changes what was read."""

    label = "faulty"

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self.names_at_once = store.names_at_once
        self.before: Callable[[str], asyncio.Future[Any] | None] = lambda _call: None
        self.after: Callable[[str], asyncio.Future[Any] | None] = lambda _call: None
        self.spoil: Spoil = lambda _name, content: content
        self.calls: list[tuple[str, int]] = []
        """Each call, and how many names it was about."""

    async def exists(self, names: Sequence[str]) -> list[bool]:
        await self._begin("exists", len(names))
        return await self.store.exists(names)

    async def read(self, name: str, bytes_max: int) -> memoryview | None:
        await self._begin("read", 1)
        raw = await self.store.read(name, bytes_max)
        if raw is None:
            return None
        waiting = self.after("read")
        if waiting is not None:
            await waiting
        spoiled = self.spoil(name, bytes(raw))
        return None if spoiled is None else memoryview(spoiled)

    async def write(self, name: str, content: memoryview) -> None:
        await self._begin("write", 1)
        await self.store.write(name, content)

    async def delete(self, names: Sequence[str]) -> None:
        await self._begin("delete", len(names))
        await self.store.delete(names)

    async def delete_below(self, prefix: str) -> int:
        await self._begin("delete_below", 1)
        return await self.store.delete_below(prefix)

    async def close(self) -> None:
        await self._begin("close", 0)
        await self.store.close()

    async def _begin(self, call: str, count: int) -> None:
        self.calls.append((call, count))
        waiting = self.before(call)
        if waiting is not None:
            await waiting


def refuse(_call: str) -> None:
    raise TierIOError("the engine refuses", operation="test")


async def never() -> None:
    await asyncio.Event().wait()


def hang(_call: str) -> "asyncio.Future[None]":
    return asyncio.ensure_future(never())
