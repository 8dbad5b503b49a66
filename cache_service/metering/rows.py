"""RowMeter: tells the storage meter which blocks came into a tier and left it.

Blocks that nobody owns, and those of a namespace without a name, are not metered; a row remembers
in a column whether it is, and when its hours begin, so what leaves is what came. Told by the owner
table; event loop only.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from cache_service.block_tree import NOWHERE, BlockTree
from cache_service.metering.meter import Sort, StorageMeter
from cache_service.metering.models import ModelNames
from kvtier.blocks import Tier
from kvtier.keys import NamespaceId

__all__ = ["RowMeter"]

_PHASE = {Tier.HOST: "host_phase", Tier.SSD: "ssd_phase"}
"""Columns: 0 for a copy that is not metered, else one more than its phase."""

_PLACE = {Tier.HOST: "slab_page", Tier.SSD: "segment"}


class RowMeter:
    """`tenant_of`: an owner number's organisation."""

    def __init__(
        self,
        tree: BlockTree,
        meter: StorageMeter,
        names: ModelNames,
        tenant_of: Callable[[int], str],
    ) -> None:
        self._tree = tree
        self._meter = meter
        self._names = names
        self._tenant_of = tenant_of
        self._closed = False

    def came(self, tier: Tier, rows: "Sequence[int] | NDArray[np.int64]") -> None:
        """Copies of blocks, which have their owners."""
        if self._closed:
            return
        at = np.asarray(rows, np.int64)
        phases = self._tree.columns.array(_PHASE[tier])
        for owner, kind, some in self._sorted(at):
            sort, block_tokens = self._sort(tier, owner, kind)
            if sort is not None:
                phases[some] = self._meter.came(sort, len(some) * block_tokens) + 1

    def left(self, tier: Tier, rows: "Sequence[int] | NDArray[np.int64]") -> None:
        """REQUIRES: their owners still stand."""
        if self._closed:
            return
        at = np.asarray(rows, np.int64)
        phases = self._tree.columns.array(_PHASE[tier])
        at = at[phases[at] > 0]
        if not len(at):
            return
        for owner, kind, some in self._sorted(at):
            sort, block_tokens = self._sort(tier, owner, kind)
            assert sort is not None, "it was metered when it came"
            counted = Counter[int]()
            for phase, count in zip(*np.unique(phases[some], return_counts=True), strict=True):
                counted[int(phase) - 1] += int(count) * block_tokens
            self._meter.left(sort, counted)
        phases[at] = 0

    def named(self, namespace_id: NamespaceId) -> None:
        """It has got a name: its blocks are metered from now on."""
        numbers = self._tree.namespaces.numbers(namespace_id)
        if numbers:
            self.enter_all(sorted(numbers))

    def enter_all(self, kinds: Sequence[int] | None = None) -> None:
        """Copies that are there already and not metered; `kinds`: of these alone."""
        columns, high = self._tree.columns, self._tree.directory.row_high
        there = (columns.array("cached")[:high] > 0) & (columns.array("owner")[:high] > 0)
        if kinds is not None:
            there &= np.isin(columns.array("kind")[:high], kinds)
        for tier, phase in _PHASE.items():
            new = (columns.array(_PLACE[tier])[:high] != NOWHERE) & (
                columns.array(phase)[:high] == 0
            )
            rows = np.flatnonzero(there & new)
            if len(rows):
                self.came(tier, rows)

    def close(self) -> None:
        """Nothing is told any more."""
        self._closed = True

    def _sort(self, tier: Tier, owner: int, kind: int) -> tuple[Sort | None, int]:
        named = self._names.get(self._tree.namespaces.kind(kind)[0])
        if named is None or not owner:
            return None, 0
        return Sort(self._tenant_of(owner), named.model, tier), named.block_tokens

    def _sorted(self, rows: NDArray[np.int64]) -> list[tuple[int, int, NDArray[np.int64]]]:
        """(owner, kind, rows): those that go together; a run of a chain mostly does."""
        owners = self._tree.columns.array("owner")[rows].astype(np.int64)
        kinds = self._tree.columns.array("kind")[rows].astype(np.int64)
        both = (owners << 32) | kinds
        if (both == both[0]).all():
            return [(int(owners[0]), int(kinds[0]), rows)]
        return [
            (int(each) >> 32, int(each) & 0xFFFFFFFF, rows[both == each])
            for each in np.unique(both)
        ]

    def check_integrity(self) -> None:
        """Walks everything."""
        if self._closed:
            return
        made: Counter[Sort] = Counter()
        columns = self._tree.columns
        for row in self._tree:
            for tier, phase in _PHASE.items():
                there = columns.array(_PLACE[tier])[row] != NOWHERE
                metered = columns.array(phase)[row] > 0
                sort, block_tokens = self._sort(tier, columns.owner[row], columns.kind[row])
                assert metered == bool(there and sort is not None), (row, tier)
                if sort is not None and metered:
                    made[sort] += block_tokens
        assert dict(made) == self._meter.tokens()
        self._meter.check_integrity()
