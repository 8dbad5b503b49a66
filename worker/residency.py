"""Pages for requests: taking, sharing, sealing and giving back.

Puts page pool, prefix tree and block tables together under one rule (`worker/admission.py`): what
is reserved can always be taken.

Invariant: reserved pages never exceed free plus idle pages, except while lent pages come back.
Owned by the engine's thread.
"""

from collections.abc import Sequence

from kvtier.blocks import Tier
from kvtier.keys import BlockHash
from worker.block_table import BlockTable
from worker.kv_pages import KvPages, PageId
from worker.live_request import LiveRequest, Sample
from worker.page_pool import PagePool
from worker.prefix_tree import PrefixTree
from worker.sampler import sample_generator

__all__ = ["Residency"]


class Residency:
    """The device side of the cache."""

    def __init__(self, kv: KvPages, pool: PagePool) -> None:
        self._kv = kv
        self._pool = pool
        self._tree = PrefixTree(pool)
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

    def admit(self, live: LiveRequest, need: int) -> bool:
        """Gives `live` its first sample with the prompt's pages, and reserves the rest of `need`.

        False, and nothing changed, when the pages are not there. Resident pages count as hits.
        """
        chain = live.reusable_chain(self._block_tokens)
        matched = self._tree.match(chain)
        waking = sum(self._pool.holders(page) == 1 for page in matched)
        there = self._pool.free_count + self._pool.idle_count - waking - self._reserved
        if need - len(matched) > there:
            return False
        table = BlockTable(self._pool)
        take = self._tree.hold if live.request.one_off else self._tree.use
        for page in take(chain):
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

    def seal(self, sample: Sample, *, one_off: bool) -> None:
        """Makes the sample's computed full blocks resident."""
        full = sample.computed // self._block_tokens
        first = sample.sealed_blocks
        self._tree.seal(sample.chain.hashes, sample.table, first, full, one_off=one_off)
        sample.sealed_blocks = max(full, sample.sealed_blocks)

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
