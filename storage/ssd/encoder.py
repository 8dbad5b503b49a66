"""From payloads in the owner's memory to blocks as they will lie on the disk, before the writer.

Invariant: when a call has returned or raised, nothing touches its payloads any more but, of blocks
that are stored as they are, the writer. A data key is durable before anything is encrypted under
it. Event loop; bytes are encoded and encrypted on threads.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from storage.codec import Codec
from storage.ssd.buffer_pool import BufferPool
from storage.ssd.encoding import StoredBlock, as_stored, as_stored_encrypted
from storage.ssd.encryption import DataKey, organisation_of
from storage.ssd.key_ring import KeyRing
from storage.ssd.lanes import Lane
from storage.tier import BlockRecord

__all__ = ["BlockEncoder"]

T = TypeVar("T")

Payloads = Sequence[tuple[BlockRecord, memoryview]]

_KEPT_BYTES_MAX = 64 << 20
"""Of memory to encrypt into: a write batch of the service."""


class _Job(NamedTuple):
    """A block to encrypt."""

    record: BlockRecord
    view: memoryview
    codec: Codec
    owner: str
    key: DataKey
    nonce: bytes
    target: memoryview


class BlockEncoder:
    """Keys are prepared on the writer's lane, which is where they may be changed."""

    def __init__(
        self, keys: KeyRing, codec_lane: Lane, codec_threads: int, write_lane: Lane
    ) -> None:
        self._keys = keys
        self._codec_lane = codec_lane
        self._codec_threads = codec_threads
        self._write_lane = write_lane
        self._pool = BufferPool(_KEPT_BYTES_MAX)

    async def encoded(
        self, batch: Payloads, owners: Sequence[str], codec: Codec
    ) -> list[StoredBlock]:
        """`owners`: one for each. `written` has to follow. Raises ValueError for memory that is not
        as the tier wants it, TierIOError, TierBusyError."""
        if self._keys.enabled:
            return await self._encrypted(batch, owners, codec)
        blocks = [(*each, codec, owner) for each, owner in zip(batch, owners, strict=True)]
        if codec is Codec.NONE:
            return [as_stored(*block) for block in blocks]
        calls = (self._codec_lane.run(as_stored, *block) for block in blocks)
        # Every call has ended before one's failure goes on: their memory is the caller's again.
        done = await asyncio.gather(*calls, return_exceptions=True)
        return [_result(outcome) for outcome in done]

    def written(self, blocks: Sequence[StoredBlock]) -> None:
        """Nobody reads what was made of them any more."""
        for block in blocks:
            if block.encrypted is not None and block.codec is Codec.NONE:
                self._pool.give_back(block.view)

    async def _encrypted(
        self, batch: Payloads, owners: Sequence[str], codec: Codec
    ) -> list[StoredBlock]:
        organisations = list(map(organisation_of, owners))
        keys = await self._write_lane.run(self._keys.prepare, Counter(organisations))
        jobs = [
            _Job(
                *each,
                codec,
                owner,
                keys[whose],
                self._keys.nonce(),
                self._pool.take(each[1].nbytes),
            )
            for each, owner, whose in zip(batch, owners, organisations, strict=True)
        ]
        # A run for each thread: a call of the lane costs as much as a small block.
        size = max(1, -(-len(jobs) // self._codec_threads))
        runs = [jobs[start : start + size] for start in range(0, len(jobs), size)]
        calls = (self._codec_lane.run(_all_encrypted, run) for run in runs)
        done = await asyncio.gather(*calls, return_exceptions=True)
        blocks = [block for outcome in done for block in _result(outcome)]
        for job, block in zip(jobs, blocks, strict=True):
            if block.view is not job.target:
                self._pool.give_back(job.target)
        return blocks


def _all_encrypted(jobs: Sequence[_Job]) -> list[StoredBlock]:
    return [as_stored_encrypted(*job) for job in jobs]


def _result(outcome: T | BaseException) -> T:
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome
