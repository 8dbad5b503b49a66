"""From payloads in the owner's memory to blocks as they will lie on the disk, before the writer.

Invariant: when a call has returned or raised, nothing touches its payloads any more but, of blocks
that are stored as they are, the writer. A data key is durable before anything is encrypted under
it. Event loop; bytes are encoded and encrypted on threads.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence

from storage.codec import Codec
from storage.ssd.encoding import StoredBlock, as_stored, as_stored_encrypted
from storage.ssd.encryption import organisation_of
from storage.ssd.key_ring import KeyRing
from storage.ssd.lanes import Lane
from storage.tier import BlockRecord

__all__ = ["BlockEncoder"]

Payloads = Sequence[tuple[BlockRecord, memoryview]]


class BlockEncoder:
    """Keys are prepared on the writer's lane, which is where they may be changed."""

    def __init__(self, keys: KeyRing, codec_lane: Lane, write_lane: Lane) -> None:
        self._keys = keys
        self._codec_lane = codec_lane
        self._write_lane = write_lane

    async def encoded(
        self, batch: Payloads, owners: Sequence[str], codec: Codec
    ) -> list[StoredBlock]:
        """`owners`: one for each. Raises ValueError for memory that is not as the tier wants it,
        TierIOError, TierBusyError."""
        if self._keys.enabled:
            return await self._encrypted(batch, owners, codec)
        blocks = [(*each, codec, owner) for each, owner in zip(batch, owners, strict=True)]
        if codec is Codec.NONE:
            return [as_stored(*block) for block in blocks]
        calls = (self._codec_lane.run(as_stored, *block) for block in blocks)
        # Every call has ended before one's failure goes on: their memory is the caller's again.
        done = await asyncio.gather(*calls, return_exceptions=True)
        return [_block_of(outcome) for outcome in done]

    async def _encrypted(
        self, batch: Payloads, owners: Sequence[str], codec: Codec
    ) -> list[StoredBlock]:
        organisations = list(map(organisation_of, owners))
        keys = await self._write_lane.run(self._keys.prepare, Counter(organisations))
        calls = (
            self._codec_lane.run(
                as_stored_encrypted, *each, codec, owner, keys[whose], self._keys.nonce()
            )
            for each, owner, whose in zip(batch, owners, organisations, strict=True)
        )
        done = await asyncio.gather(*calls, return_exceptions=True)
        return [_block_of(outcome) for outcome in done]


def _block_of(outcome: StoredBlock | BaseException) -> StoredBlock:
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome
