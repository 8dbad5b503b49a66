"""Pages for requests: taking, sharing, sealing and giving back.

Puts page pool, prefix tree and block tables together under one rule (`worker/admission.py`): what
is reserved can always be taken.

Invariant: reserved pages never exceed free plus idle pages, except while lent pages come back.
Owned by the engine's thread.
"""

import time
from collections.abc import Callable, Sequence

from kvtier.blocks import Tier
from kvtier.keys import BlockHash
from worker.block_table import BlockTable
from worker.kv_pages import KvPages, PageId
from worker.live_request import LiveRequest, Sample
from worker.page_pool import PagePool
from worker.prefix_tree import PrefixTree
from worker.prefix_units import EVERY_BLOCK, PrefixUnits
from worker.sampler import sample_generator

__all__ = ["Residency"]


class Residency:
    """The device side of the cache."""

    def __init__(
        self,
        kv: KvPages,
        pool: PagePool,
        clock: Callable[[], float] = time.monotonic,
        units: PrefixUnits = EVERY_BLOCK,
    ) -> None:
        self._kv = kv
        self._pool = pool
        self._clock = clock
        self._tree = PrefixTree(pool, clock, units)
        self._block_tokens = kv.layout.block_tokens
        self._reserved = 0

    @property
    def pool(self) -> PagePool:
        return self._pool

    @property
    def evicted_count(self) -> int:
        return self._tree.evicted_count

    def resident_blocks(self, chain: Sequence[BlockHash]) -> int:
        """Length of the longest resident prefix of `chain`. Changes nothing."""
        return len(self._tree.match(chain))

    def missing_pages(self, live: LiveRequest, need: int) -> int:
        """How many pages more would have to be there for `admit`."""
        matched = self._tree.match(live.reusable_chain(self._block_tokens))
        return max(0, need - len(matched) - self._there(matched))

    def _there(self, matched: Sequence[PageId]) -> int:
        """Pages that may be taken by who keeps those."""
        waking = sum(self._pool.holders(page) == 1 for page in matched)
        return self._pool.free_count + self._pool.idle_count - waking - self._reserved

    def admit(self, live: LiveRequest, need: int) -> bool:
        """Gives `live` its first sample with the prompt's pages, and reserves the rest of `need`.

        False, and nothing changed, when the pages are not there. Resident pages count as hits.
        """
        chain = live.reusable_chain(self._block_tokens)
        matched = self._tree.match(chain)
        if need - len(matched) > self._there(matched):
            return False
        table = BlockTable(self._pool)
        for page in self._take_resident(live, chain):
            table.append(page)
        self._reserved += need - len(matched)
        sample = Sample(
            index=0,
            table=table,
            chain=live.chain,
            reserved_pages=need - len(matched),
            generator=sample_generator(live.request.sampling, 0),
            computed=len(matched) * self._block_tokens,
            sealed_blocks=len(matched),
        )
        self.grow(sample, live.prompt_tokens)
        live.samples.append(sample)
        live.hit_tokens_by_tier[Tier.GPU] = sample.computed
        return True

    def _take_resident(self, live: LiveRequest, chain: Sequence[BlockHash]) -> list[PageId]:
        """What keeps blocks puts off their end too, as its store would."""
        if live.request.one_off:
            return self._tree.hold(chain)
        return self._tree.use(chain, live.until(self._clock()) if live.keeps else 0.0)

    def grow(self, sample: Sample, tokens: int) -> None:
        """Makes room in the table for the first `tokens` tokens, out of the reservation."""
        while len(sample.table) * self._block_tokens < tokens:
            sample.table.append(self._take_reserved(sample))

    def fork(self, live: LiveRequest) -> None:
        """Makes the other samples of a computed prompt: full pages shared, the last one copied."""
        first = live.samples[0]
        full = live.prompt_tokens // self._block_tokens
        partial = 1 if live.prompt_tokens % self._block_tokens else 0
        # The first sample has its copy of the partial page already.
        share = (first.reserved_pages + partial) // live.request.sample_count
        for index in range(1, live.request.sample_count):
            first.reserved_pages -= share
            live.samples.append(self._forked(live, index, full, share))

    def _forked(self, live: LiveRequest, index: int, full: int, share: int) -> Sample:
        first = live.samples[0]
        chain = live.chain.branch(full)
        chain.extend(live.request.token_ids[full * self._block_tokens :])
        sample = Sample(
            index=index,
            table=BlockTable(self._pool),
            chain=chain,
            reserved_pages=share,
            generator=sample_generator(live.request.sampling, index),
            computed=first.computed,
            sealed_blocks=first.sealed_blocks,
        )
        sample.table.share(first.table.pages[:full])
        if live.prompt_tokens % self._block_tokens:
            page = self._take_reserved(sample)
            self._kv.copy_page(first.table.pages[full], page)
            sample.table.append(page)
        return sample

    def seal(self, live: LiveRequest, sample: Sample) -> int:
        """Makes the sample's computed full blocks resident; how many of them were not."""
        full, new_count = sample.computed // self._block_tokens, 0
        first = sample.sealed_blocks
        if first < full:
            new_count = self._tree.seal(
                sample.chain.hashes,
                sample.table,
                first,
                full,
                one_off=live.request.one_off,
                until=live.until(self._clock()),
            )
        sample.sealed_blocks = max(full, sample.sealed_blocks)
        return new_count

    def end_units(self, sample: Sample, ends: Sequence[int]) -> None:
        """Prefix units end after so many of the sample's sealed blocks."""
        self._tree.end_units([sample.chain.hashes[end - 1] for end in ends])

    def swap_out(self, sample: Sample, indexes: range) -> list[PageId]:
        """Puts fresh pages in place of those at `indexes`, which a stuck transfer may still write.

        Returns the stuck pages, now held by the transfer alone; they count as lent.
        """
        stuck = [sample.table.pages[index] for index in indexes]
        for index in indexes:
            fresh = self._pool.take()
            sample.table.replace(index, fresh)
            self._pool.release(fresh)
        return stuck

    def give_back(self, sample: Sample) -> None:
        """Ends the sample's hold on pages and reservation."""
        sample.table.clear()
        self._reserved -= sample.reserved_pages
        sample.reserved_pages = 0

    def check_integrity(self, live: Sequence[LiveRequest]) -> None:
        """Raises AssertionError unless pages, tree and the reservations of `live` add up."""
        self._pool.check_integrity()
        self._tree.check_integrity()
        reserved = sum(s.reserved_pages for request in live for s in request.samples)
        assert reserved == self._reserved, f"{reserved} pages reserved, {self._reserved} counted"
        there = self._pool.free_count + self._pool.idle_count
        assert reserved <= there or self._pool.ever_lent, f"{reserved} reserved of {there} pages"

    def _take_reserved(self, sample: Sample) -> PageId:
        assert sample.reserved_pages > 0, "a sample outgrew its reservation"
        if self._pool.free_count < 1:
            self._tree.evict()
        sample.reserved_pages -= 1
        self._reserved -= 1
        return self._pool.take()
