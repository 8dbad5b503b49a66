"""Which pages are free, held or idle: the ledger of the page pool.

    free   nobody holds it
    held   a block table, a transfer or the prefix tree holds it (a count of holders)
    idle   the prefix tree is its only holder: cached, and may be evicted

Invariant: used pages (held or idle) plus free pages are all pages, and idle pages are exactly the
resident pages with one holder. Owned by the engine's thread.

A transfer that never returns keeps its pages for ever. So that this costs memory, not progress,
the ledger knows more pages than its capacity and lends that many extra until the transfer returns;
some also to a running request that would have to wait for a transfer under way.
"""

from collections.abc import Callable

from worker.kv_pages import PageId

__all__ = ["PagePool"]


class PagePool:
    """`capacity` pages may be in use at a time, out of `page_count` that exist."""

    def __init__(self, page_count: int, capacity: int) -> None:
        assert 0 < capacity <= page_count
        self._capacity = capacity
        self._lent = 0
        self._ever_lent = False
        self._holders = [0] * page_count
        self._resident = [False] * page_count
        # A stack, lowest page on top: pages past the capacity stay untouched memory.
        self._free = [PageId(page) for page in reversed(range(page_count))]
        self._idle_count = 0
        self._on_idle: Callable[[PageId], None] = _ignore

    @property
    def capacity(self) -> int:
        return self._capacity

    @property
    def used_count(self) -> int:
        return len(self._holders) - len(self._free)

    @property
    def idle_count(self) -> int:
        return self._idle_count

    @property
    def free_count(self) -> int:
        """Pages that may be taken without evicting; negative while lent pages come back."""
        return self._capacity + self._lent - self.used_count

    @property
    def ever_lent(self) -> bool:
        """Whether more than the capacity may have been promised, to outlive a stuck transfer."""
        return self._ever_lent

    def watch_idle(self, on_idle: Callable[[PageId], None]) -> None:
        """Calls `on_idle` whenever a page becomes idle. One watcher: the prefix tree."""
        self._on_idle = on_idle

    def take(self) -> PageId:
        """A free page with one holder. Requires one; the caller has reserved it."""
        page = self._free.pop()
        self._holders[page] = 1
        return page

    def holders(self, page: PageId) -> int:
        return self._holders[page]

    def hold(self, page: PageId) -> None:
        """One more holder of a page in use."""
        assert self._holders[page] > 0
        if self._resident[page] and self._holders[page] == 1:
            self._idle_count -= 1
        self._holders[page] += 1

    def release(self, page: PageId) -> None:
        """One holder less; a page without holders is free."""
        assert self._holders[page] > (1 if self._resident[page] else 0)
        self._holders[page] -= 1
        if self._holders[page] == 0:
            self._free.append(page)
        elif self._resident[page] and self._holders[page] == 1:
            self._idle_count += 1
            self._on_idle(page)

    def keep(self, page: PageId) -> None:
        """The prefix tree becomes a holder of a page that someone holds."""
        assert self._holders[page] > 0
        assert not self._resident[page]
        self._holders[page] += 1
        self._resident[page] = True

    def drop(self, page: PageId) -> None:
        """The prefix tree gives up an idle page: it is free."""
        assert self._resident[page]
        assert self._holders[page] == 1
        self._resident[page] = False
        self._idle_count -= 1
        self._holders[page] = 0
        self._free.append(page)

    def lend(self, count: int) -> None:
        """Allows `count` more pages in use, for as many that are stuck."""
        self._lent += count
        self._ever_lent = True

    def take_back(self, count: int) -> None:
        assert count <= self._lent
        self._lent -= count

    def check_integrity(self) -> None:
        """Raises AssertionError when the parts do not make the whole."""
        free = set(self._free)
        assert len(free) == len(self._free), "a page is free twice"
        for page, holders in enumerate(self._holders):
            assert (holders == 0) == (page in free), f"page {page}: {holders} holders"
            assert holders > 0 or not self._resident[page], f"page {page} is resident and free"
        idle = sum(
            resident and holders == 1
            for resident, holders in zip(self._resident, self._holders, strict=True)
        )
        assert idle == self._idle_count, f"{idle} pages are idle, {self._idle_count} counted"


def _ignore(page: PageId) -> None:
    """Before the prefix tree watches."""
