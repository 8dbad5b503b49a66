"""Choices made from the bytes of an input, so that a guided fuzzer steers them.

`ByteChoices` is a `random.Random` whose every choice takes the next bytes; when they are used up it
always chooses the first. Shorter inputs so mean simpler lives.
"""

import itertools
import random

from kvtier.keys import BlockHash

__all__ = ["ByteChoices", "chains"]


class ByteChoices(random.Random):
    """Not seeded: the input is the seed."""

    def __new__(cls, data: bytes) -> "ByteChoices":
        return super().__new__(cls)

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def taken(self, size: int) -> bytes:
        """The next bytes themselves, fewer at the end."""
        self._at += size
        return self._data[self._at - size : self._at]

    def random(self) -> float:
        return self.getrandbits(16) / 65536

    def getrandbits(self, k: int, /) -> int:
        size = (k + 7) // 8
        return int.from_bytes(self.taken(size), "little") & ((1 << k) - 1)

    def _randbelow(self, n: int) -> int:
        # Not by rejection: an input that is used up would never get out of it.
        return self.getrandbits(max(8, n.bit_length())) % n if n else 0

    def randbytes(self, n: int) -> bytes:
        part = self.taken(min(n, 64))
        return (part + bytes(n))[:n]


_numbers = itertools.count()


def chains(count: int) -> list[BlockHash]:
    """Hashes that nobody had before."""
    number = next(_numbers).to_bytes(8, "big")
    return [BlockHash(number + i.to_bytes(8, "big") + bytes(16)) for i in range(count)]
