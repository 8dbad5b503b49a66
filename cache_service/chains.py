"""Chain: the block hashes of one call, as they came over the wire.

A chain stays one run of bytes, with the same bytes as words for whole-chain work; a hash is cut out
of it only where one is wanted. Two thousand hashes are looked up in the time it takes to make two
hundred objects. Frozen; any thread.
"""

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from cache_service.errors import MalformedChainError, TooManyBlocksError
from kvtier.keys import HASH_BYTES, BlockHash

__all__ = ["Chain", "check_chain"]

_WORDS_PER_HASH = HASH_BYTES // 8


class Chain(Sequence[BlockHash]):
    """Hashes in order. Equal to another chain of the same hashes."""

    __slots__ = ("packed", "words")

    def __init__(self, packed: bytes) -> None:
        """Raises MalformedChainError unless that is a whole number of hashes."""
        if len(packed) % HASH_BYTES:
            raise MalformedChainError(
                f"{len(packed)} bytes are not a whole number of {HASH_BYTES}-byte block hashes"
            )
        self.packed = packed
        self.words: NDArray[np.uint64] = np.frombuffer(packed, "<u8").reshape(-1, _WORDS_PER_HASH)
        """(hashes, 4)"""

    @classmethod
    def of(cls, hashes: Sequence[BlockHash]) -> "Chain":
        """Raises MalformedChainError."""
        if isinstance(hashes, Chain):
            return hashes
        if any(len(block_hash) != HASH_BYTES for block_hash in hashes):
            raise MalformedChainError(f"a block hash has {HASH_BYTES} bytes")
        return cls(b"".join(hashes))

    def __len__(self) -> int:
        return len(self.packed) // HASH_BYTES

    @overload
    def __getitem__(self, at: int) -> BlockHash: ...
    @overload
    def __getitem__(self, at: slice) -> "Chain": ...
    def __getitem__(self, at: int | slice) -> "BlockHash | Chain":
        if isinstance(at, slice):
            start, stop, step = at.indices(len(self))
            if step == 1:
                return Chain(self.packed[start * HASH_BYTES : max(start, stop) * HASH_BYTES])
            return Chain(b"".join(self[each] for each in range(start, stop, step)))
        count = len(self)
        if not -count <= at < count:
            raise IndexError(at)
        start = at % count * HASH_BYTES
        return BlockHash(self.packed[start : start + HASH_BYTES])

    def __iter__(self) -> Iterator[BlockHash]:
        packed = self.packed
        for start in range(0, len(packed), HASH_BYTES):
            yield BlockHash(packed[start : start + HASH_BYTES])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Chain) and self.packed == other.packed

    def __hash__(self) -> int:
        return hash(self.packed)

    def repeats(self) -> bool:
        """True when a hash appears twice."""
        first = np.sort(self.words[:, 0])
        # Honest hashes differ in their first word already; others are looked at one by one.
        return bool((first[1:] == first[:-1]).any()) and len(set(self)) != len(self)


def check_chain(hashes: Sequence[BlockHash], blocks_max: int) -> Chain:
    """What a call may name. Raises MalformedChainError, TooManyBlocksError."""
    chain = Chain.of(hashes)
    if not chain:
        raise MalformedChainError("the chain is empty")
    if len(chain) > blocks_max:
        raise TooManyBlocksError(
            f"{len(chain)} blocks in one call; at most {blocks_max} fit", blocks_max=blocks_max
        )
    if chain.repeats():
        raise MalformedChainError("a block hash appears twice in the chain")
    return chain
