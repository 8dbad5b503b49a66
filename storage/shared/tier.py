"""SharedTier: finds, reads, writes and forgets extents on an engine that is not believed.

    find    a chain beyond what is here -> its longest prefix there, a few names at a time
    read    an extent -> checked -> into memory that the caller holds
    write   blocks in memory -> one object, unless it is there

Invariants: every call but one ends by its deadline, whatever the engine does; what `read` filled is
a block that was asked for, bit for bit, or it raises; memory that was given to a call is not
touched after it returned or raised. What an extent costs of processor runs on threads of this
tier's own, of which there are few. One event loop.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from kvtier.keys import BlockHash, NamespaceId
from storage.errors import CorruptBlockError, ObjectTooLargeError, TierIOError
from storage.shared.extent import (
    BadExtentError,
    ExtentBlock,
    ExtentHead,
    OtherKeyError,
    extent_bytes,
    pack,
    read_owners,
    unpack,
)
from storage.shared.levels import Extent, begins, level_sizes
from storage.shared.objects import ObjectStore
from storage.shared.sealing import Sealing
from storage.tier import NO_PARENT

__all__ = ["ChainView", "Fetched", "SharedLimits", "SharedTier"]

T = TypeVar("T")

log = logging.getLogger(__name__)

ROOT = "kvtier/"
"""Of all names: whoever deletes everything deletes nothing of anybody else's."""

THREADS = 2
"""For copies, checksums and ciphers, all without the interpreter lock."""

ROUNDS_MAX = 16
"""Of a search; a chain of millions of blocks takes fewer."""

DELETED_AT_ONCE = 1000

CLOSE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class SharedLimits:
    """Deadlines, in seconds."""

    find_seconds: float = 0.25
    """A whole search."""
    request_seconds: float = 5.0
    """One read, write or delete."""


@dataclass(frozen=True, slots=True)
class ChainView:
    """Names of a chain's blocks from block `first` on, counted from the chain's first."""

    namespace_id: NamespaceId
    block_bytes: int
    first: int
    hashes: Sequence[BlockHash]
    before: BlockHash | None = None
    """Of the block before `first`; None: there is none, or it is not known."""

    @property
    def end(self) -> int:
        return self.first + len(self.hashes)

    def name(self, position: int) -> BlockHash:
        """REQUIRES: first <= position < end."""
        return self.hashes[position - self.first]

    def parent(self, position: int) -> BlockHash | None:
        """Of the block before it, NO_PARENT before the chain's first; None: it is not known."""
        if not position:
            return NO_PARENT
        if position == self.first:
            return self.before
        return self.name(position - 1) if position > self.first else None


@dataclass(frozen=True, slots=True)
class Fetched:
    """An object in memory. Nothing of it is believed yet."""

    chain: ChainView
    extent: Extent
    name: str
    raw: memoryview
    owners: Sequence[str]
    """Whose its blocks are said to be: to plan by."""


class SharedTier:
    """Takes over the engine: `close` closes it."""

    def __init__(
        self,
        store: ObjectStore,
        limits: SharedLimits,
        sealing: Sealing | None = None,
        generation: int = 0,
    ) -> None:
        """`generation`: of what is written and believed; a store keeps several apart."""
        self._store = store
        self._limits = limits
        self._sealing = sealing
        self._generation = generation
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="shared-tier")

    @property
    def label(self) -> str:
        return self._store.label

    @property
    def sealed(self) -> bool:
        return self._sealing is not None

    @property
    def find_seconds(self) -> float:
        return self._limits.find_seconds

    def name_of(self, namespace_id: NamespaceId, last: BlockHash, count: int) -> str:
        """The object of an extent of so many blocks that ends with `last`."""
        digits = last.hex()
        return f"{self._folder(namespace_id)}{digits[:2]}/{digits}.{count}"

    def _folder(self, namespace_id: NamespaceId) -> str:
        return f"{ROOT}g{self._generation}/{namespace_id.hex()}/"

    # -- find --------------------------------------------------------------------------------------

    async def find(self, chain: ChainView, position: int) -> list[Extent]:
        """Extents that continue a prefix of `position` blocks, in order, each beginning where the
        one before ends; the first may begin sooner. Empty: there is nothing.

        What is said to be there may be gone when it is read. Raises TierIOError.
        """
        return await self._within(self._limits.find_seconds, self._find(chain, position), "search")

    async def _find(self, chain: ChainView, position: int) -> list[Extent]:
        sizes = level_sizes(chain.block_bytes)
        search = _Search(self._store.names_at_once, lambda extents: self._there(chain, extents))
        levels = range(len(sizes) - 1, -1, -1)
        # All levels' next extents in one round: where there is nothing, as is usual for the end of
        # a prompt that is new, that is all that is asked.
        nexts = [(sizes[each], begins(sizes, each, position, chain.end)) for each in levels]
        await search.ask([Extent(at[0], at[0] + size) for size, at in nexts if at])
        found: list[Extent] = []
        for level in levels:
            starts = begins(sizes, level, position, chain.end)
            extents = [Extent(at, at + sizes[level]) for at in starts]
            found += extents[: await search.last(extents) + 1]
            position = found[-1].end if found else position
        return found

    async def _there(self, chain: ChainView, extents: Sequence[Extent]) -> list[bool]:
        return await self._store.exists(
            [
                self.name_of(chain.namespace_id, chain.name(each.end - 1), each.size)
                for each in extents
            ]
        )

    # -- read and write ----------------------------------------------------------------------------

    async def fetch(self, chain: ChainView, extent: Extent) -> Fetched | None:
        """The extent's bytes, to be opened; None: it is not there.

        Raises TierIOError; CorruptBlockError as `open`.
        """
        name = self.name_of(chain.namespace_id, chain.name(extent.end - 1), extent.size)
        bytes_max = extent_bytes(extent.size, chain.block_bytes)
        reading = self._store.read(name, bytes_max)
        try:
            raw = await self._within(self._limits.request_seconds, reading, "read")
            if raw is None:
                return None
            last, head = chain.name(extent.end - 1), self._head(chain)
            owners = read_owners(raw, head, last, extent.size, self._sealing)
        except (ObjectTooLargeError, OtherKeyError, BadExtentError) as error:
            raise await self._refused(name, error) from None
        return Fetched(chain, extent, name, raw, owners)

    async def open(self, fetched: Fetched, into: Mapping[int, memoryview]) -> list[ExtentBlock]:
        """Fills `into[p]`, `block_bytes` long, with block p of the chain; all of the extent's
        blocks as its table has them.

        Raises CorruptBlockError for what is not what was asked for: it is deleted then, so that
        somebody may write it again, unless another key sealed it.
        """
        chain, extent = fetched.chain, fetched.extent
        known = {
            at - extent.start: chain.name(at)
            for at in range(max(extent.start, chain.first), extent.end)
        }
        parent = chain.parent(extent.start)
        if parent is not None:
            known[-1] = parent
        targets = {at - extent.start: memory for at, memory in into.items()}
        head, raw = self._head(chain), fetched.raw
        try:
            return await self._on_thread(
                unpack, raw, head, known, extent.size, targets, self._sealing
            )
        except (OtherKeyError, BadExtentError) as error:
            raise await self._refused(fetched.name, error) from None

    async def read(
        self, chain: ChainView, extent: Extent, into: Mapping[int, memoryview]
    ) -> list[ExtentBlock] | None:
        """Both; None: it is not there."""
        fetched = await self.fetch(chain, extent)
        return None if fetched is None else await self.open(fetched, into)

    async def write(
        self,
        chain: ChainView,
        extent: Extent,
        parent: BlockHash,
        blocks: Sequence[ExtentBlock],
        payloads: Sequence[memoryview],
    ) -> int:
        """Writes an extent; bytes of the object, 0 where it was there. The payloads are read until
        this returns. Raises TierIOError."""
        name = self.name_of(chain.namespace_id, chain.name(extent.end - 1), extent.size)
        seconds = self._limits.request_seconds
        if (await self._within(seconds, self._store.exists([name]), "search"))[0]:
            return 0
        head = self._head(chain)
        content = await self._on_thread(pack, head, parent, blocks, payloads, self._sealing)
        assert content.nbytes <= extent_bytes(extent.size, chain.block_bytes)
        await self._within(seconds, self._store.write(name, content), "write")
        return content.nbytes

    # -- forget ------------------------------------------------------------------------------------

    async def forget(
        self, namespace_id: NamespaceId, block_bytes: int, hashes: Sequence[BlockHash]
    ) -> None:
        """Deletes every extent that ends with one of these. Raises TierIOError."""
        names = [
            self.name_of(namespace_id, each, size)
            for each in hashes
            for size in level_sizes(block_bytes)
        ]
        seconds = self._limits.request_seconds
        for at in range(0, len(names), DELETED_AT_ONCE):
            part = names[at : at + DELETED_AT_ONCE]
            await self._within(seconds, self._store.delete(part), "delete")

    async def forget_all(self, namespace_id: NamespaceId | None) -> int:
        """Deletes all of a namespace, or everything of every generation; how many objects. Takes as
        long as that takes: its caller has the deadline.

        Raises TierIOError, with what was not deleted still there; again goes on.
        """
        return await self._store.delete_below(
            ROOT if namespace_id is None else self._folder(namespace_id)
        )

    async def close(self) -> None:
        """REQUIRES: no call is under way. Bounded: an engine that hangs is left to itself."""
        self._threads.shutdown(wait=False)
        try:
            await self._within(CLOSE_SECONDS, self._store.close(), "close")
        except TierIOError as error:
            log.warning("the shared tier was not closed", extra={"problem": str(error)})

    # -- below -------------------------------------------------------------------------------------

    def _head(self, chain: ChainView) -> ExtentHead:
        return ExtentHead(chain.namespace_id, self._generation, chain.block_bytes)

    async def _refused(self, name: str, error: Exception) -> CorruptBlockError:
        """The error to raise for an object that is not believed, and the end of the object."""
        if isinstance(error, OtherKeyError):
            return CorruptBlockError(f"an extent of another key: {error}", cause="key")
        try:
            await self._within(self._limits.request_seconds, self._store.delete([name]), "delete")
        except TierIOError as failure:
            # It is a miss again, for whoever reads it next.
            log.warning("a bad extent stays", extra={"problem": str(failure)})
        cause = "size" if isinstance(error, ObjectTooLargeError) else "content"
        return CorruptBlockError(f"a bad extent: {error}", cause=cause)

    async def _within(self, seconds: float, doing: Awaitable[T], what: str) -> T:
        """Raises TierIOError when it takes longer."""
        try:
            async with asyncio.timeout(seconds):
                return await doing
        except TimeoutError:
            raise TierIOError(
                f"the shared tier did not answer a {what} within {seconds:g} s",
                operation=what,
                cause="timeout",
            ) from None

    async def _on_thread(self, call: Callable[..., T], *arguments: object) -> T:
        """Runs to its end, once begun, also where its caller is cancelled, however often: memory
        that it fills or reads is not the caller's before."""
        work = self._threads.submit(call, *arguments)
        running = asyncio.wrap_future(work)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            if not work.cancel():
                await _ended(running)
            raise


async def _ended(running: "asyncio.Future[T]") -> None:
    """Returns when it is done, whoever cancels meanwhile: it takes milliseconds."""
    while not running.done():
        try:
            await asyncio.wait({running})
        except asyncio.CancelledError:
            continue


class _Search:
    """What is known of which extents are there, asked for in rounds."""

    def __init__(
        self,
        names_at_once: int,
        ask: Callable[[Sequence[Extent]], Awaitable[list[bool]]],
    ) -> None:
        self._names_at_once = names_at_once
        self._ask = ask
        self._there: dict[Extent, bool] = {}

    async def ask(self, extents: Sequence[Extent]) -> None:
        """One round."""
        new = [each for each in extents if each not in self._there]
        if new:
            self._there.update(zip(new, await self._ask(new), strict=True))

    async def last(self, extents: Sequence[Extent]) -> int:
        """The last of those that are there, where each is there if a later one is; -1: none."""
        low, high = -1, len(extents)
        """Before and with `low` they are there, from `high` on they are not."""
        if extents and self._there.get(extents[0]) is False:
            return -1
        for _ in range(ROUNDS_MAX):
            for at in range(low + 1, high):
                there = self._there.get(extents[at])
                if there:
                    low = at
                elif there is False:
                    high = at
                    break
            if high - low <= 1:
                return low
            count = min(self._names_at_once, high - low - 1)
            step = (high - low) / (count + 1)
            probes = sorted({low + max(1, round(step * (i + 1))) for i in range(count)})
            await self.ask([extents[at] for at in probes if low < at < high])
        return low
