"""A sample's pages, in order of its blocks.

Invariant: the table is one holder of each of its pages; `clear` gives them all back. Owned by the
engine's thread.
"""

from collections.abc import Sequence

from worker.kv_pages import PageId
from worker.page_pool import PagePool

__all__ = ["BlockTable"]


class BlockTable:
    """Starts empty. `pages` is for reading; it changes through the methods."""

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self.pages: list[PageId] = []

    def __len__(self) -> int:
        return len(self.pages)

    def append(self, page: PageId) -> None:
        """Takes over the caller's hold on `page`."""
        self.pages.append(page)

    def share(self, pages: Sequence[PageId]) -> None:
        """Appends pages that others hold too."""
        for page in pages:
            self._pool.hold(page)
            self.pages.append(page)

    def replace(self, index: int, page: PageId) -> None:
        """Puts `page`, which others hold, in the place of the page at `index`."""
        self._pool.hold(page)
        self._pool.release(self.pages[index])
        self.pages[index] = page

    def clear(self) -> None:
        # Last page first: leaves become idle before their parents.
        while self.pages:
            self._pool.release(self.pages.pop())
