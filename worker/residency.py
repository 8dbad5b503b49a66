"""Pages for requests: taking, sharing, sealing and giving back.

Puts page pool, prefix tree and block tables together. A request gets pages for what is known of it;
what it wants later has to be there then (`worker/room_making.py`), unless it was admitted with all
its pages reserved: others take none of those.

Invariant: reserved pages never exceed free plus idle pages, except while lent pages come back.
Owned by the engine's thread.
"""

import time
from collections.abc import Callable, Sequence

from kvtier.keys import BlockChain, BlockHash
from worker.block_table import BlockTable
from worker.kv_pages import KvPages, PageId
from worker.live_request import LiveRequest
from worker.page_pool import PagePool
from worker.prefix_tree import PrefixTree
from worker.prefix_units import EVERY_BLOCK, PrefixUnits
from worker.requests import CacheMode
from worker.sampler import sample_generator
from worker.sequence import TokenSequence

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
        self._reserving: list[LiveRequest] = []

    @property
    def pool(self) -> PagePool:
        return self._pool

    @property
    def evicted_count(self) -> int:
        return self._tree.evicted_count

    def resident_blocks(self, chain: Sequence[BlockHash]) -> int:
        """Length of the longest resident prefix of `chain`. Changes nothing."""
        return len(self._tree.match(chain))

    def look(self, live: LiveRequest) -> int:
        """How many leading blocks of `live` are resident now, whole units or not."""
        chain, limit = live.leader.chain.hashes, live.reusable_count(self._block_tokens)
        live.resident_hint = self._tree.count(chain, limit, live.resident_hint)
        return live.resident_hint

    def usable(self, live: LiveRequest) -> int:
        """Of those at the last look, how many a hit may have."""
        count = self._tree.whole_count(live.leader.chain.hashes, live.resident_hint)
        return live.grid.whole(count)

    def reserves(self, live: LiveRequest) -> bool:
        return live in self._reserving

    def room(self, live: LiveRequest | None = None) -> int:
        """Pages that may be taken now: by `live`, or by one that has none reserved."""
        others = (other for other in self._reserving if other is not live)
        return self._pool.free_count + self._pool.idle_count - sum(map(self._left, others))

    def missing_pages(self, live: LiveRequest, kept_free: int, *, reserve: bool) -> int:
        """How many pages more have to be there for `admit`; 0 or less: none.

        `kept_free`: so many must be left for others. `reserve`: for all that it can ever want.
        """
        count = self._block_tokens
        need = live.pages_max(count) if reserve else live.pages_soon(count)
        self.look(live)
        resident = self.usable(live)
        missing = need + kept_free - resident - self.room()
        if missing <= 0:
            # What is idle and reused is no room for the rest.
            matched = self._tree.match(live.leader.chain.hashes[:resident])
            missing += sum(self._pool.holders(page) == 1 for page in matched)
        return missing

    def admit(self, live: LiveRequest, *, reserve: bool) -> int:
        """Gives the leader the pages of all its known tokens, resident ones first; how many of
        those there were. Requires that no pages are missing."""
        sequence = live.leader
        pages = self._take_resident(live, live.reusable_chain(self._block_tokens))
        for page in pages:
            sequence.table.append(page)
        if reserve:
            self._reserving.append(live)
        self._reuse(sequence, len(pages))
        self.grow(sequence, sequence.known)
        return len(pages)

    def first_sequence(self, live: LiveRequest) -> TokenSequence:
        return self._sequence(live, 0, live.chain)

    def growth(self, sequence: TokenSequence, tokens: int) -> int:
        """Pages that its first `tokens` tokens want more."""
        return max(0, -(-tokens // self._block_tokens) - len(sequence.table))

    def grow(self, sequence: TokenSequence, tokens: int) -> None:
        """Makes room in the table for the first `tokens` tokens. Requires pages."""
        for _ in range(self.growth(sequence, tokens)):
            sequence.table.append(self._take())

    def fork(self, live: LiveRequest) -> None:
        """Makes the other sequences of a computed prompt: full pages shared, the last one copied
        where there is a page, else to be computed again."""
        first = live.sequences[0]
        full = live.prompt_tokens // self._block_tokens
        for index in range(1, live.request.sample_count):
            chain = live.chain.branch(full)
            chain.extend(live.request.token_ids[full * self._block_tokens :])
            sequence = self._sequence(live, index, chain)
            sequence.table.share(first.table.pages[:full])
            sequence.has(live.prompt_tokens)
            sequence.sealed_blocks = first.sealed_blocks
            sequence.written_blocks = first.written_blocks
            sequence.offered_blocks = first.sealed_blocks
            live.sequences.append(sequence)
            if live.prompt_tokens % self._block_tokens:
                if self.room(live) > 0:
                    page = self._take()
                    self._kv.copy_page(first.table.pages[full], page)
                    sequence.table.append(page)
                else:
                    sequence.computed = full * self._block_tokens

    def join(self, live: LiveRequest) -> None:
        """Gives the other sequences of a request that was put back the prompt's full pages, once
        the leader has them, and what is resident of their own."""
        leader, full = live.leader, live.prompt_tokens // self._block_tokens
        if leader.computed < full * self._block_tokens:
            return
        for sequence in live.open_sequences:
            if not self.parked(live, sequence):
                continue
            chain = self._own_chain(live, sequence, full)
            if len(self._tree.match(chain)) > full:
                for page in self._take_resident(live, chain):
                    sequence.table.append(page)
            else:
                sequence.table.share(leader.table.pages[:full])
            self._reuse(sequence, len(sequence.table))

    def parked(self, live: LiveRequest, sequence: TokenSequence) -> bool:
        """Whether it waits for the leader to have the prompt."""
        full = live.prompt_tokens // self._block_tokens
        return sequence is not live.leader and len(sequence.table) < full

    def seal(self, live: LiveRequest, sequence: TokenSequence) -> int:
        """Makes the sequence's computed full blocks resident; how many of them were written: new,
        and not counted before."""
        full = live.kept_count(sequence.computed // self._block_tokens)
        first = sequence.sealed_blocks
        if first >= full:
            return 0
        middle = max(first, _written_blocks(live, sequence, full))
        self._seal(live, sequence, first, middle)
        written = self._seal(live, sequence, middle, full)
        sequence.sealed_blocks = full
        sequence.written_blocks = max(sequence.written_blocks, full)
        return written

    def end_units(self, sequence: TokenSequence, ends: Sequence[int]) -> None:
        """Prefix units end after so many of the sequence's sealed blocks."""
        self._tree.end_units([sequence.chain.hashes[end - 1] for end in ends])

    def swap_out(self, sequence: TokenSequence, indexes: range) -> list[PageId]:
        """Puts fresh pages in place of those at `indexes`, which a stuck transfer may still write.

        Returns the stuck pages, now held by the transfer alone; they count as lent.
        """
        stuck = [sequence.table.pages[index] for index in indexes]
        for index in indexes:
            fresh = self._pool.take()
            sequence.table.replace(index, fresh)
            self._pool.release(fresh)
        return stuck

    def give_back(self, live: LiveRequest) -> None:
        """Ends the request's hold on pages and reservation."""
        for sequence in live.open_sequences:
            sequence.give_back()
        if live in self._reserving:
            self._reserving.remove(live)

    def trim(self) -> None:
        """Gives up idle pages until no more are in use than may be, where lent ones came back."""
        while self._pool.free_count < 0 and self._tree.evict():
            pass

    def check_integrity(self, running: Sequence[LiveRequest]) -> None:
        """Raises AssertionError unless pages, tree and reservations add up."""
        self._pool.check_integrity()
        self._tree.check_integrity()
        assert set(map(id, self._reserving)) <= set(map(id, running)), "an ended one reserves"
        there = self._pool.free_count + self._pool.idle_count
        reserved = sum(map(self._left, self._reserving))
        assert reserved <= there or self._pool.ever_lent, f"{reserved} reserved of {there} pages"

    def _own_chain(
        self, live: LiveRequest, sequence: TokenSequence, full: int
    ) -> Sequence[BlockHash]:
        """What a sequence that joins may take up again of its own, behind the prompt's `full`
        pages that are both the leader's and the tree's. Idle ones may be reserved by others, who
        were admitted while the leader loaded or computed the prompt."""
        reusable = 0 if live.request.cache_mode is CacheMode.BYPASS else sequence.known - 1
        chain = sequence.chain.hashes[: reusable // self._block_tokens]
        pages = self._tree.match(chain)
        if pages[:full] != live.leader.table.pages[:full]:
            return ()
        room, count = self.room(live), full
        for page in pages[full:]:
            room -= self._pool.holders(page) == 1
            if room < 0:
                break
            count += 1
        return chain[:count]

    def _left(self, live: LiveRequest) -> int:
        return live.pages_max(self._block_tokens) - live.pages_held(self._block_tokens)

    def _sequence(self, live: LiveRequest, index: int, chain: BlockChain) -> TokenSequence:
        generator = sample_generator(live.request.sampling, index)
        return TokenSequence(
            index, live.request.token_ids, chain, BlockTable(self._pool), generator
        )

    def _reuse(self, sequence: TokenSequence, blocks: int) -> None:
        """The first `blocks` pages of its table are there already."""
        sequence.has(blocks * self._block_tokens)
        sequence.sealed_blocks = blocks
        sequence.written_blocks = max(sequence.written_blocks, blocks)

    def _take_resident(self, live: LiveRequest, chain: Sequence[BlockHash]) -> list[PageId]:
        """What keeps blocks puts off their end too, as its store would."""
        if live.grid.fixed:
            chain = chain[: live.grid.whole(len(self._tree.match(chain)))]
        if live.request.one_off:
            return self._tree.hold(chain)
        return self._tree.use(chain, live.until(self._clock()) if live.keeps else 0.0)

    def _seal(self, live: LiveRequest, sequence: TokenSequence, first: int, end: int) -> int:
        return self._tree.seal(
            sequence.chain.hashes,
            sequence.table,
            first,
            end,
            one_off=live.request.one_off,
            until=live.until(self._clock()),
        )

    def _take(self) -> PageId:
        while self._pool.free_count < 1 and self._tree.evict():
            pass
        return self._pool.take()


def _written_blocks(live: LiveRequest, sequence: TokenSequence, end: int) -> int:
    """Of the sequence's first `end` blocks the leading ones that do not count as written any more:
    what one sample wrote, another that says the same does not write again."""
    count, hashes = min(sequence.written_blocks, end), sequence.chain.hashes
    for other in live.sequences:
        # Equal hash, equal blocks before it.
        limit = min(other.written_blocks, end)
        while count < limit and other.chain.hashes[count] == hashes[count]:
            count += 1
    return count
