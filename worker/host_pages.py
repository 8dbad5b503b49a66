"""Pages in host memory, written and read in place: nothing is ever under way.

Checksums are those of the page itself, on the way in of what was written to it. Who was given a
page's bytes may use them for as long as the transfer runs, so none can be taken back from it:
`revoke` is False.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import overload

from kvtier.keys import BlockHash
from worker.landing import LandingProgress, PageBytes, Spread
from worker.transfer import copy_hashed, leading_equal

__all__ = ["HostPages"]


class HostPages(LandingProgress, Sequence[PageBytes]):
    """Both `Landing` and `Source`."""

    def __init__(self, pages: Sequence[PageBytes]) -> None:
        """Raises ValueError unless all are of one size, each in one run."""
        super().__init__(len(pages))
        self._pages = list(pages)
        self.page_bytes = self._pages[0].nbytes if self._pages else 0
        for page in self._pages:
            if page.nbytes != self.page_bytes or page.ndim != 1 or not page.flags.c_contiguous:
                raise ValueError(f"a page must be {self.page_bytes} contiguous bytes")

    def __len__(self) -> int:
        return len(self._pages)

    @overload
    def __getitem__(self, at: int) -> PageBytes: ...

    @overload
    def __getitem__(self, at: slice) -> "HostPages": ...

    def __getitem__(self, at: int | slice) -> "PageBytes | HostPages":
        return HostPages(self._pages[at]) if isinstance(at, slice) else self._pages[at]

    def take(
        self,
        first: int,
        blocks: Sequence[BlockHash],
        slabs: Sequence[PageBytes],
        checksums: Sequence[int],
    ) -> int:
        pages = self._pages[first : first + len(blocks)]
        return leading_equal(copy_hashed(blocks, slabs, pages, pages), checksums)

    def room(self, first: int, count: int) -> Sequence[PageBytes]:
        return self._pages[first : first + count]

    def push(self, first: int, filled: Sequence[PageBytes]) -> None:
        """They are the pages."""

    def settle(self, first: int, count: int, spread: Spread) -> int:
        return count

    @contextlib.contextmanager
    def lend(self, indexes: Sequence[int]) -> Iterator[Sequence[PageBytes]]:
        yield [self._pages[index] for index in indexes]

    def close(self) -> None:
        """Nothing is under way."""

    def revoke(self) -> bool:
        return False

    @property
    def quiet(self) -> bool:
        return False
