"""OwnerTable: who owns which block, and what each owner has in each tier.

An owner is the path of the scope in which a block is, as the engine said when it stored it: for
accounts, quotas, purges and explanations. It opens nothing and keeps nobody out: that is the names'
part. A block that nobody named an owner for, a public one too, is number 0: nobody's, and what all
of nobody's take is the rest of the tier.

Invariant: an owner is here as long as a cached block is its, or, of an organisation, as one within
it is; its counts are the sums over those blocks. Where nobody is named this costs a look at a
column. Written by the index and the storing side; event loop only.
"""

from array import array
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cache_service.accounts import Accounts
from cache_service.block_tree import BlockTree
from cache_service.owner_runs import within
from cache_service.owner_views import OwnersView, OwnerView
from kvtier.blocks import Tier
from storage.policy.columns import Column, grow, view

if TYPE_CHECKING:
    from cache_service.metering.rows import RowMeter
    from storage.ssd.recovered import RecoveredColumns

__all__ = ["NOBODY", "OwnerTable"]

NOBODY = 0


class OwnerTable:
    """Owners by number; a number is given again once nothing is its owner's."""

    def __init__(self, tree: BlockTree) -> None:
        self._tree = tree
        self._paths: list[str] = [""]
        self._numbers: dict[str, int] = {}
        self._free: list[int] = []
        self._holders: Column = array("q")
        """Cached blocks that name it; of an organisation also the owners within it."""
        self._tenants: Column = array("q")
        """Number of its organisation, itself for an organisation."""
        self._host_counts: Column = array("q")
        self._host_bytes: Column = array("q")
        self._ssd_counts: Column = array("q")
        self._ssd_bytes: Column = array("q")
        self._sums = (self._host_counts, self._host_bytes, self._ssd_counts, self._ssd_bytes)
        self._grow(NOBODY)
        self.accounts: Accounts | None = None
        """Told of all that moves; None where no quotas are set. Set once, before anything comes."""
        self.meter: RowMeter | None = None
        """Told of the copies of somebody's blocks; None where storage is not metered."""

    def __len__(self) -> int:
        """Owners, with organisations that have blocks only through those within them."""
        return len(self._numbers)

    # -- asking ------------------------------------------------------------------------------------

    def of(self, row: int) -> str:
        """The owner's path; "" for nobody."""
        return self._paths[self._tree.columns.owner[row]]

    def tenant(self, number: int) -> str:
        """The organisation of an owner that is here."""
        return self._paths[self._tenants[number]]

    def to_write(self, rows: Sequence[int]) -> list[str]:
        """Owners of blocks whose records are about to be written; empty when there is none."""
        return [self.of(row) for row in rows] if self._numbers else []

    def numbers_within(self, owner: str) -> list[int]:
        """Of the owner and all within it, as far as they are here."""
        tenant = self._numbers.get(owner.partition("/")[0])
        if tenant is None:
            return []
        same: list[int] = np.flatnonzero(view(self._tenants) == tenant).tolist()
        return [number for number in same if number and within(self._paths[number], owner)]

    def view(self, count: int, *, tenants: bool = False) -> OwnersView:
        """Up to `count` owners, most payload in both tiers first; `tenants`: organisations, each
        with all within it. O(owners), in NumPy."""
        sums = [view(column) for column in self._sums]
        if tenants:
            of = view(self._tenants)
            sums = [np.bincount(of, each, len(of)).astype(np.int64) for each in sums]
        sizes = sums[1] + sums[3]
        owners = (
            OwnerView(self._paths[number], *(int(each[number]) for each in sums))
            for number in _largest(sizes, count)
        )
        total = OwnerView("", *(int(each.sum()) for each in sums))
        accounts = [] if self.accounts is None else self.accounts.views(count)
        return OwnersView(tuple(owners), int((sizes > 0).sum()), total, tuple(accounts))

    def memory_bytes(self) -> int:
        """Columns; and about 150 bytes for the path and the entry of each owner."""
        columns = sum(each.itemsize * len(each) for each in (self._holders, *self._sums))
        return columns + self._tenants.itemsize * len(self._tenants) + 150 * len(self._numbers)

    # -- blocks come -------------------------------------------------------------------------------

    def recover(self, found: "RecoveredColumns") -> None:
        """What the SSD said, rows 0 to n-1. REQUIRES: nothing was entered yet."""
        if len(found.owners) == 1:
            return
        numbers = np.array([self._number(path) for path in found.owners], np.int64)
        by_row = numbers[found.owner_row]
        self._tree.columns.array("owner")[: len(found)] = by_row
        counts = np.bincount(by_row, minlength=len(self._paths))
        sizes = np.bincount(by_row, found.payload_bytes, len(self._paths)).astype(np.int64)
        counts[NOBODY] = sizes[NOBODY] = 0
        for column, more in (
            (self._holders, counts),
            (self._ssd_counts, counts),
            (self._ssd_bytes, sizes),
        ):
            view(column)[: len(more)] += more
        if self.accounts is not None:
            for number in self._numbers.values():
                self.accounts.ssd_moved(number, self._ssd_bytes[number])

    def enter(self, row: int, path: str) -> None:
        """Whose a new block is, before its first copy comes."""
        if path:
            number = self._number(path)
            self._tree.columns.owner[row] = number
            self._holders[number] += 1

    def enter_run(self, rows: Sequence[int], path: str) -> None:
        """The same of blocks of one size that are in host memory already."""
        if path:
            number = self._number(path)
            self._tree.columns.array("owner")[rows] = number
            self._holders[number] += len(rows)
            self._host_moved(number, len(rows), self._tree.payload_bytes(rows[0]))
            if self.meter is not None:
                self.meter.came(Tier.HOST, rows)
            if self.accounts is not None:
                self.accounts.offered(rows[-1])

    def host_came(self, row: int) -> None:
        """REQUIRES: somebody's, as in the next three."""
        self._host_moved(self._tree.columns.owner[row], 1, self._tree.payload_bytes(row))
        if self.meter is not None:
            self.meter.came(Tier.HOST, (row,))

    def ssd_came(self, row: int) -> None:
        self._ssd_moved(self._tree.columns.owner[row], 1, self._tree.payload_bytes(row))
        if self.meter is not None:
            self.meter.came(Tier.SSD, (row,))

    # -- blocks leave ------------------------------------------------------------------------------

    def host_left(self, row: int) -> None:
        self._host_moved(self._tree.columns.owner[row], -1, self._tree.payload_bytes(row))
        if self.meter is not None:
            self.meter.left(Tier.HOST, (row,))

    def ssd_left(self, row: int) -> None:
        self._ssd_moved(self._tree.columns.owner[row], -1, self._tree.payload_bytes(row))
        if self.meter is not None:
            self.meter.left(Tier.SSD, (row,))

    def host_run_left(self, rows: "NDArray[np.int64]") -> None:
        """Blocks of one size, anybody's, left host memory."""
        if self._numbers:
            size = self._tree.payload_bytes(int(rows[0]))
            for number, count in self._counted(rows):
                self._host_moved(number, -count, size)
            if self.meter is not None:
                self.meter.left(Tier.HOST, rows)

    def ssd_run_left(self, rows: "NDArray[np.int64]") -> None:
        """The same of the SSD."""
        if self._numbers:
            size = self._tree.payload_bytes(int(rows[0]))
            for number, count in self._counted(rows):
                self._ssd_moved(number, -count, size)
            if self.meter is not None:
                self.meter.left(Tier.SSD, rows)

    def left(self, rows: Sequence[int]) -> None:
        """The blocks, anybody's, are not cached any more, nor have a copy."""
        if self._numbers:
            at = np.array(rows, np.int64)
            for number, count in self._counted(at):
                self._let_go(number, count)
            self._tree.columns.array("owner")[at] = NOBODY

    # -- below -------------------------------------------------------------------------------------

    def _counted(self, rows: "NDArray[np.int64]") -> Iterator[tuple[int, int]]:
        """(number, blocks) for each owner of some; a run of a chain mostly has one."""
        numbers = self._tree.columns.array("owner")[rows]
        if (numbers == numbers[0]).all():
            named, counts = [int(numbers[0])], [len(rows)]
        else:
            each, of_each = np.unique(numbers, return_counts=True)
            named, counts = each.tolist(), of_each.tolist()
        for number, count in zip(named, counts, strict=True):
            if number != NOBODY:
                yield number, count

    def _host_moved(self, number: int, count: int, size: int) -> None:
        self._host_counts[number] += count
        self._host_bytes[number] += count * size
        if self.accounts is not None:
            self.accounts.host_moved(number, count * size)

    def _ssd_moved(self, number: int, count: int, size: int) -> None:
        self._ssd_counts[number] += count
        self._ssd_bytes[number] += count * size
        if self.accounts is not None:
            self.accounts.ssd_moved(number, count * size)

    def _number(self, path: str) -> int:
        """Of an owner that is about to get a block; made when there is none."""
        if not path:
            return NOBODY
        number = self._numbers.get(path)
        if number is not None:
            return number
        organisation = path.partition("/")[0]
        tenant = None if organisation == path else self._number(organisation)
        number = self._free.pop() if self._free else len(self._paths)
        if number == len(self._paths):
            self._paths.append("")
            self._grow(number)
        self._paths[number] = path
        self._numbers[path] = number
        self._tenants[number] = number if tenant is None else tenant
        if tenant is not None:
            self._holders[tenant] += 1
        if self.accounts is not None:
            self.accounts.owner_came(number, path)
        return number

    def _let_go(self, number: int, count: int) -> None:
        self._holders[number] -= count
        if self._holders[number]:
            return
        assert not self._host_bytes[number]
        assert not self._ssd_bytes[number]
        tenant = self._tenants[number]
        if self.accounts is not None:
            self.accounts.owner_left(number)
        del self._numbers[self._paths[number]]
        self._paths[number] = ""
        self._tenants[number] = NOBODY
        self._free.append(number)
        if tenant != number:
            self._let_go(tenant, 1)

    def _grow(self, number: int) -> None:
        grow((self._holders, self._tenants, *self._sums), number)

    def check_integrity(self) -> None:
        """Walks everything."""
        tree, columns = self._tree, self._tree.columns
        sums = {number: [0, 0, 0, 0, 0] for number in self._numbers.values()}
        for row in tree:
            if columns.owner[row] == NOBODY:
                continue
            each, size = sums[columns.owner[row]], tree.payload_bytes(row)
            host, ssd = tree.in_host(row), tree.on_ssd(row)
            for place, more in enumerate((1, host, host * size, ssd, ssd * size)):
                each[place] += more
        for path, number in self._numbers.items():
            tenant = self._numbers[path.partition("/")[0]]
            assert (self._paths[number], self._tenants[number]) == (path, tenant)
            inside = sum(self._tenants[other] == number for other in self._numbers.values())
            held, *rest = sums[number]
            assert self._holders[number] == held + inside - (inside > 0) > 0, path
            assert rest == [column[number] for column in self._sums], path
        assert sorted([*self._numbers.values(), *self._free]) == list(range(1, len(self._paths)))
        if self.accounts is not None:
            numbers = self._numbers.values()
            sizes = {n: (self._host_bytes[n], self._ssd_bytes[n]) for n in numbers}
            self.accounts.check_integrity(sizes)
        for number in (NOBODY, *self._free):
            assert not self._holders[number]
            assert not self._tenants[number]


def _largest(sizes: NDArray[np.int64], count: int) -> list[int]:
    """Numbers of the largest that are above 0, the largest first."""
    count = min(count, int((sizes > 0).sum()))
    if count < 1:
        return []
    some = np.argpartition(sizes, -count)[-count:]
    order: list[int] = some[np.lexsort((some, -sizes[some]))].tolist()
    return order
