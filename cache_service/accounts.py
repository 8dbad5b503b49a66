"""Accounts: what counts against each quota, and which of an account's blocks leave first.

    claim -> a slab or a place on the SSD is on its way -> the block came (counted) -> unclaim

Host memory: a block comes only after its bytes were claimed, and a claim is given only within the
hard quota; so blocks and claims together never pass it. Own blocks leave for it, least valuable
first. An account above its soft quota, claims counted, goes on while there is room; where there is
none its leaves are the first to leave, those of several such accounts in the policy's order. Such
an account takes no leaf of another that is within its own soft quota. SSD: the same claims, made
when a block is queued.

Invariant: an account is here while an owner or a claim is on it; its bytes are the sum over its
owners. O(log n) a leaf, and nothing where no quotas are set: there is no such object then. Written
by the owner table, the index, the room and the write queue; event loop only.
"""

import heapq
import itertools
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from cache_service.block_tree import BlockTree
from cache_service.owner_views import AccountView
from cache_service.quotas import Quota, Quotas
from storage.policy.columns import Column
from storage.policy.leaf_heap import ABSENT, FOREIGN, LeafHeap
from storage.policy.order import EvictionOrder

__all__ = ["Account", "Accounts"]


class Account:
    """One of them. Its bytes are payload."""

    def __init__(self, name: str, quota: Quota) -> None:
        self.name = name
        self.quota = quota
        self.owner_count = 0
        self.waiting_count = 0
        """Calls that wait for room on it."""
        self.host_bytes = 0
        self.host_claimed_bytes = 0
        """Of slabs that reservations and loads have for its blocks."""
        self.ssd_bytes = 0
        self.ssd_claimed_bytes = 0
        """Of blocks that wait to be written or are."""
        self.queued: int | None = None
        """The standing under which it is among those whose leaves leave first."""
        self.leaves: LeafHeap

    def claim_host(self, size: int, count: int) -> int:
        """Claims as many blocks of this size as fit, at most `count`; how many."""
        hard = self.quota.host_hard_bytes
        if hard is not None:
            count = min(count, max(0, hard - self.host_used_bytes) // size)
        self.host_claimed_bytes += count * size
        return count

    def like_next(self, size: int, count: int) -> int:
        """How many of the next `count` blocks of this size are, like the first of them, within the
        soft quota, or above it."""
        soft = self.quota.host_soft_bytes
        within = 0 if soft is None else (soft - self.host_used_bytes) // size
        return min(count, within) if within > 0 else count

    @property
    def host_used_bytes(self) -> int:
        """With what is claimed: it has slabs, or is about to take them."""
        return self.host_bytes + self.host_claimed_bytes

    @property
    def over_ssd_hard(self) -> bool:
        hard = self.quota.ssd_hard_bytes
        return hard is not None and self.ssd_bytes > hard

    @property
    def over_host_soft(self) -> bool:
        soft = self.quota.host_soft_bytes
        return soft is not None and self.host_used_bytes > soft


class Accounts:
    """Accounts by name, and by number of owner."""

    def __init__(
        self,
        tree: BlockTree,
        order: EvictionOrder,
        quotas: Quotas,
        may_leave: Callable[[int], bool],
    ) -> None:
        """`order`: host memory's; `may_leave`: whether a row is a leaf there that nobody holds."""
        self._tree = tree
        self._order = order
        self._quotas = quotas
        self._may_leave = may_leave
        self._by_name: dict[str, Account] = {}
        self._by_owner: dict[int, Account] = {}
        self._queued: Column = array("b")
        """One for the heaps of all accounts: a row is on one."""
        self._unbound = LeafHeap(self._standing_unbound)
        """Leaves that no soft quota is for: of accounts without one, and on no account."""
        self._over: list[tuple[int, int, Account]] = []
        """Accounts above their soft quota by their first leaf's standing; outdated ones too."""
        self._ties = itertools.count()
        self._ssd_claims: dict[int, tuple[Account, int]] = {}

    # -- asking ------------------------------------------------------------------------------------

    def of_path(self, owner: str) -> Account | None:
        """The account of an owner; None: there is no quota for it."""
        name = self._quotas.account(owner)
        if not name:
            return None
        account = self._by_name.get(name)
        if account is None:
            account = self._by_name[name] = Account(name, self._quotas.quota(name))
            standing = partial(self._standing, account)
            account.leaves = LeafHeap(standing, self._queued)
        return account

    def of_row(self, row: int) -> Account | None:
        return self._by_owner.get(self._tree.columns.owner[row])

    def first_over(self) -> int | None:
        """The leaf of an account above its soft quota that leaves next; None when there is none."""
        heap = self._over
        while heap:
            standing, _, account = heap[0]
            if standing != account.queued:
                heapq.heappop(heap)
                continue
            row = account.leaves.first() if account.over_host_soft else None
            if row is None:
                heapq.heappop(heap)
                account.queued = None
                self._drop_unused(account)
                continue
            now = self._standing(account, row)
            if now == standing:
                return row
            heapq.heapreplace(heap, (now, next(self._ties), account))
            account.queued = now
        return None

    def first_for_borrower(self) -> int | None:
        """The leaf that leaves next for an account above its soft quota; None when all that may
        leave are within the soft quotas of others."""
        first = self.first_over()
        return self._unbound.first() if first is None else first

    def may_leave_for(self, asker: Account | None, rows: Iterable[int]) -> bool:
        """Whether these may leave together: where the asker is above its soft quota, no other
        account may be below its own after it."""
        if asker is None or not asker.over_host_soft:
            return True
        sizes: Counter[Account] = Counter()
        for row in rows:
            account = self.of_row(row)
            if account is not None and account is not asker:
                sizes[account] += self._tree.payload_bytes(row)
        return all(
            account.host_used_bytes - size >= (account.quota.host_soft_bytes or 0)
            for account, size in sizes.items()
        )

    def leaving(self, count: int) -> list[int]:
        """Up to `count` of them, in order. Changes nothing."""
        found: list[tuple[int, int]] = []
        for account in self._by_name.values():
            if not account.over_host_soft:
                continue
            left = account.host_used_bytes - (account.quota.host_soft_bytes or 0)
            for row in account.leaves.least(count):
                if left <= 0:
                    break
                left -= self._tree.payload_bytes(row)
                found.append((self._standing(account, row), row))
        return [row for _, row in sorted(found)[:count]]

    def ssd_fits(self, row: int) -> bool:
        """Whether a block may be queued for the SSD."""
        account = self.of_row(row)
        hard = None if account is None else account.quota.ssd_hard_bytes
        if account is None or hard is None:
            return True
        size = self._tree.payload_bytes(row)
        return account.ssd_bytes + account.ssd_claimed_bytes + size <= hard

    def over_ssd_soft(self, row: int) -> bool:
        account = self.of_row(row)
        soft = None if account is None else account.quota.ssd_soft_bytes
        return account is not None and soft is not None and account.ssd_bytes > soft

    def over_ssd_hard(self) -> Iterator[tuple[Account, list[int]]]:
        """Accounts that have more on the SSD than they may, as a start can find, with the numbers
        of their owners."""
        for account in list(self._by_name.values()):
            if account.over_ssd_hard:
                yield account, [n for n, each in self._by_owner.items() if each is account]

    def views(self, count: int) -> list[AccountView]:
        """Up to `count` of them, those with most payload first, claims counted."""
        largest = heapq.nlargest(
            count,
            self._by_name.values(),
            key=lambda each: each.host_used_bytes + each.ssd_bytes + each.ssd_claimed_bytes,
        )
        return [
            AccountView(
                each.name,
                each.quota,
                each.host_bytes,
                each.host_claimed_bytes,
                each.ssd_bytes,
                each.ssd_claimed_bytes,
            )
            for each in largest
        ]

    # -- claims ------------------------------------------------------------------------------------

    def claim_host(self, account: Account, size: int, count: int) -> int:
        """`Account.claim_host`; what is above the soft quota by it is borrowed."""
        before = account.over_host_soft
        claimed = account.claim_host(size, count)
        if account.over_host_soft and not before:
            self._note(account)
        return claimed

    def unclaim_host(self, account: Account, size: int) -> None:
        """What was claimed came, or will not."""
        account.host_claimed_bytes -= size
        assert account.host_claimed_bytes >= 0
        self._drop_unused(account)

    def claim_ssd(self, row: int) -> None:
        """A block is queued for the SSD. REQUIRES: it fits, and is not queued."""
        account = self.of_row(row)
        if account is not None:
            size = self._tree.payload_bytes(row)
            account.ssd_claimed_bytes += size
            self._ssd_claims[row] = account, size

    def unclaim_ssd(self, row: int) -> None:
        """It is there, or will not be."""
        claim = self._ssd_claims.pop(row, None)
        if claim is not None:
            account, size = claim
            account.ssd_claimed_bytes -= size
            self._drop_unused(account)

    # -- from the owner table and the index --------------------------------------------------------

    def owner_came(self, number: int, path: str) -> None:
        account = self.of_path(path)
        if account is not None:
            self._by_owner[number] = account
            account.owner_count += 1

    def owner_left(self, number: int) -> None:
        account = self._by_owner.pop(number, None)
        if account is not None:
            account.owner_count -= 1
            self._drop_unused(account)

    def host_moved(self, number: int, size: int) -> None:
        """Payload of an owner came into host memory, or left it: then `size` is negative."""
        account = self._by_owner.get(number)
        if account is not None:
            before = account.over_host_soft
            account.host_bytes += size
            if account.over_host_soft and not before:
                self._note(account)

    def ssd_moved(self, number: int, size: int) -> None:
        account = self._by_owner.get(number)
        if account is not None:
            account.ssd_bytes += size

    def offered(self, row: int) -> None:
        """A block in host memory may be a victim from now on, or has got its owner."""
        if self._standing_unbound(row) != ABSENT:
            self._unbound.push(row)
        account = self.of_row(row)
        if account is not None and self._standing(account, row) != ABSENT:
            account.leaves.push(row)
            if account.over_host_soft:
                self._note(account)

    def left_host(self, row: int) -> None:
        """The block leaves host memory."""
        self._unbound.forget(row)
        account = self.of_row(row)
        if account is not None:
            account.leaves.forget(row)

    # -- below -------------------------------------------------------------------------------------

    def _standing(self, account: Account, row: int) -> int:
        return self._standing_of(row) if self.of_row(row) is account else FOREIGN

    def _standing_unbound(self, row: int) -> int:
        account = self.of_row(row)
        bound = account is not None and account.quota.host_soft_bytes is not None
        return ABSENT if bound else self._standing_of(row)

    def _standing_of(self, row: int) -> int:
        if row not in self._order or not self._may_leave(row):
            return ABSENT
        # What is not wanted again leaves before all that is.
        return 0 if self._tree.columns.one_off[row] else self._order.standing(row)

    def _note(self, account: Account) -> None:
        """Has its first leaf leave before others'."""
        row = account.leaves.first()
        if row is None:
            return
        standing = self._standing(account, row)
        if account.queued is None or standing < account.queued:
            account.queued = standing
            heapq.heappush(self._over, (standing, next(self._ties), account))

    def _drop_unused(self, account: Account) -> None:
        claimed = account.host_claimed_bytes or account.ssd_claimed_bytes
        if not account.owner_count and not claimed and not account.waiting_count:
            account.queued = None
            self._by_name.pop(account.name, None)

    def check_integrity(self, owners: dict[int, tuple[int, int]]) -> None:
        """`owners`: host and SSD bytes by number of owner."""
        sums = {name: [0, 0, 0] for name in self._by_name}
        for number, account in self._by_owner.items():
            assert self._by_name[account.name] is account
            for place, more in enumerate((*owners[number], 1)):
                sums[account.name][place] += more
        unbound = {row for row in self._tree if self._standing_unbound(row) != ABSENT}
        self._unbound.check_integrity(unbound)
        claimed = dict.fromkeys(self._by_name, 0)
        for account, size in self._ssd_claims.values():
            claimed[account.name] += size
        for name, account in self._by_name.items():
            kept = [account.host_bytes, account.ssd_bytes, account.owner_count]
            assert sums[name] == kept, name
            assert account.ssd_claimed_bytes == claimed[name]
            quota = account.quota
            hard = quota.host_hard_bytes
            assert hard is None or account.host_used_bytes <= hard
            assert not account.over_ssd_hard
            rows = {row for row in self._tree if self.of_row(row) is account}
            leaves = {row for row in rows if self._standing(account, row) != ABSENT}
            account.leaves.check_integrity(leaves)
            if account.over_host_soft and leaves:
                least = min(self._standing(account, row) for row in leaves)
                assert account.queued is not None
                assert account.queued <= least
