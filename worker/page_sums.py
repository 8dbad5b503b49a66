"""PageSums: checksums of pages that are being sent, each taken once, by whoever comes first.

    | sender, behind what it has sent -> | nobody yet | <- helpers |

The sender hashes what the kernel has just copied, while its processor's cache still has it; helpers
begin at the other end, with what no cache has. Where they meet the sender only sends.

Invariant: a page is hashed by one thread. Any thread: both ends of the deque are taken from in one
step under the interpreter lock.
"""

from collections import deque
from collections.abc import Sequence

from kvtier.keys import BlockHash, payload_checksums

__all__ = ["PageSums"]

PART_BYTES = 1024 * 1024
"""What a helper takes at a time."""


class PageSums:
    """Of `pages`, as the blocks of `hashes`."""

    def __init__(self, hashes: Sequence[BlockHash], pages: Sequence[memoryview]) -> None:
        self._hashes = hashes
        self._pages = pages
        self._left = deque(range(len(pages)))
        self._part = max(1, PART_BYTES // len(pages[0])) if pages else 1
        self.sums = [0] * len(pages)
        """Right once `take_all` has returned for everybody."""

    def sent(self, count: int) -> None:
        """So many leading pages have been sent: takes those that nobody has."""
        left, mine = self._left, list[int]()
        if not left:
            return
        try:
            while left[0] < count:
                mine.append(left.popleft())
        except IndexError:
            pass  # the others have the rest
        self._take(mine)

    def take_all(self) -> None:
        """Takes pages that nobody has, the last first, until there are none."""
        left = self._left
        while left:
            mine = list[int]()
            try:
                while len(mine) < self._part:
                    mine.append(left.pop())
            except IndexError:
                pass
            self._take(mine)

    def stop(self) -> None:
        """Nobody wants them: what nobody has is not taken any more."""
        self._left.clear()

    def _take(self, indexes: Sequence[int]) -> None:
        found = payload_checksums(
            [self._hashes[i] for i in indexes], [self._pages[i] for i in indexes]
        )
        for i, checksum in zip(indexes, found, strict=True):
            self.sums[i] = checksum
