"""Absences: why blocks that are not cached any more are not, as far as that is remembered.

Invariant: bounded; the oldest are forgotten first. Written by the index, on the event loop.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from kvtier.blocks import MissReason
from kvtier.keys import BlockHash

__all__ = ["Absences"]


class Absences:
    """Reasons by block hash."""

    def __init__(self, count_max: int) -> None:
        self._count_max = count_max
        self._reasons: OrderedDict[BlockHash, MissReason] = OrderedDict()

    def reason(self, block_hash: BlockHash) -> MissReason:
        """REQUIRES: the block is not cached."""
        return self._reasons.get(block_hash, MissReason.NEVER_STORED)

    def remember(self, block_hash: BlockHash, reason: MissReason) -> None:
        self._reasons[block_hash] = reason
        if len(self._reasons) > self._count_max:
            self._reasons.popitem(last=False)

    def remember_run(self, hashes: Sequence[BlockHash], reason: MissReason) -> None:
        """The same for many."""
        self._reasons.update(dict.fromkeys(hashes, reason))
        while len(self._reasons) > self._count_max:
            self._reasons.popitem(last=False)

    def forget_run(self, hashes: Iterable[BlockHash]) -> None:
        """As `forget`, for many."""
        if self._reasons:
            for block_hash in hashes:
                self._reasons.pop(block_hash, None)

    def forget(self, block_hash: BlockHash) -> None:
        """The block is cached now."""
        self._reasons.pop(block_hash, None)

    def check_integrity(self) -> None:
        assert len(self._reasons) <= self._count_max
