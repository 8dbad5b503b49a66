"""SsdAdmission: which blocks are worth a write to the SSD, and what the answer costs.

    commit -> judge: the rule looks at each new block of the request once
    at its time to be written (`write_timing.py`)
           -> wanted: the rule let it in, or it was used again in memory since
           -> spend: the day's write budget still has the bytes
    recycling wrote it again -> charge: later writes wait for it

Invariant: a block is judged once for each time it enters the cache, in the order of its chain. What
is turned away is remembered, bounded, so that a later miss on it can be counted as its price.
Owned by the write queue; event loop only.
"""

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cache_service.budget_note import BudgetNote, Moment
from cache_service.index import BlockIndex
from cache_service.views import AdmissionView, CachePolicies, StarvedBlocks
from storage.policy.admission import AdmissionRule, AdmitAll, AdmitFirstNew
from storage.policy.write_budget import WriteBudget, day_needed_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["SsdAdmission"]

log = logging.getLogger(__name__)

NAMES_MAX = 1_000_000
"""Names of refused blocks that are remembered: 24 to 48 bytes each, made as they come."""


class SsdAdmission:
    """The rule and the budget of one SSD tier."""

    def __init__(
        self, index: BlockIndex, policies: CachePolicies, clock: Callable[[], float]
    ) -> None:
        self._index = index
        self._policies = policies
        self._clock = clock
        self._first_new: AdmitFirstNew | None = None
        if policies.ssd_admission == "first_new":
            self._first_new = AdmitFirstNew(policies.ssd_new_blocks_max, NAMES_MAX)
        self._rule: AdmissionRule = self._first_new or AdmitAll()
        self._budget: WriteBudget | None = None
        if policies.ssd_write_bytes_per_day:
            self._budget = WriteBudget(policies.ssd_write_bytes_per_day, NAMES_MAX)
        self._starved: StarvedBlocks | None = None

    def resume(self, note: bytes, whole: bool, now: Moment) -> None:
        """Goes on with the budget as `note` said at the end of an earlier life.

        Without a note a store that was never written to (`whole`: all that was is counted) begins
        with a full bucket, and any other with an empty one: what was written before is not known.
        """
        if self._budget is None:
            return
        found = BudgetNote.parse(note)
        if found is not None:
            self._budget.resume(found.left_bytes, found.at.seconds_until(now))
        elif not whole:
            self._budget.resume(0, 0.0)

    def note(self, now: Moment) -> bytes:
        """For `resume`, in a later life. Empty without a budget."""
        if self._budget is None:
            return b""
        return BudgetNote(self._budget.left_bytes(self._clock()), now).pack()

    def expect(self, block_bytes: int, record_bytes: int) -> None:
        """A session has blocks of that size. Says so once when the budget lets in no new ones."""
        needs = day_needed_bytes(record_bytes)
        if self._budget is None or needs <= self._policies.ssd_write_bytes_per_day:
            return
        if self._starved is not None and self._starved.block_bytes <= block_bytes:
            return
        self._starved = StarvedBlocks(block_bytes, needs)
        log.warning(
            "ssd.write_bytes_per_day never lets a new block of this size to the SSD; raise it to"
            " what is needed, or set it to 0",
            extra={
                "block_bytes": block_bytes,
                "write_bytes_per_day": self._policies.ssd_write_bytes_per_day,
                "needed_bytes_per_day": needs,
            },
        )

    def judge(self, rows: Sequence[int]) -> None:
        """Asks the rule about the new blocks of one request, in the order of their chain."""
        name_of = self._index.tree.directory.name_of
        for new_before, row in enumerate(rows):
            self._index.admit(row, self._rule.admits(name_of(row), new_before))

    def wanted(self, row: int) -> bool:
        """True when a block in host memory should be on the SSD, if it can be afforded."""
        return self._index.admitted(row) or self._index.used_again(row)

    def affordable(self, row: int, record_bytes: int) -> bool:
        """True when the budget has the bytes now, for this block."""
        used_again = self._index.used_again(row)
        return self._budget is None or self._budget.allows(record_bytes, self._clock(), used_again)

    def spend(self, row: int, record_bytes: int) -> bool:
        """True when the budget has the bytes: they are spent then."""
        if self._budget is None or not self.affordable(row, record_bytes):
            return self._budget is None
        name = self._index.tree.directory.name_of(row)
        return self._budget.spend(name, record_bytes, self._clock(), self._index.used_again(row))

    def charge(self, record_bytes: int) -> None:
        """Bytes that had to be written, budget or not: recycling wrote blocks again."""
        if self._budget is not None:
            self._budget.charge(record_bytes)

    def turn_away(self, row: int, record_bytes: int) -> None:
        """The budget keeps the block from the SSD."""
        if self._budget is not None:
            self._budget.turn_away(self._index.tree.directory.name_of(row), record_bytes)

    def missed(self, names: "NDArray[np.uint64]") -> None:
        """Blocks were asked for and are nowhere: were they turned away?"""
        if self._budget is not None and self._budget.turned_away_blocks:
            for name in names.tolist():
                self._budget.missed(name)

    def view(self) -> AdmissionView:
        budget, rule, policies = self._budget, self._first_new, self._policies
        return AdmissionView(
            rule=policies.ssd_admission,
            write_when=policies.ssd_write_when,
            declined_count=rule.refused_blocks if rule is not None else 0,
            write_bytes_per_day=policies.ssd_write_bytes_per_day,
            allowed_bytes=budget.allowed_bytes(self._clock()) if budget is not None else 0,
            allowed_new_bytes=budget.allowed_new_bytes(self._clock()) if budget is not None else 0,
            starved=self._starved,
            over_budget_count=budget.turned_away_blocks if budget is not None else 0,
            over_budget_bytes=budget.turned_away_bytes if budget is not None else 0,
            lost_hit_count=(rule.lost_hits if rule is not None else 0)
            + (budget.lost_hits if budget is not None else 0),
        )
