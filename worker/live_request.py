"""A request inside the engine: where it stands. Owned by the engine's thread.

    WAITING -> LOADING -> RUNNING -> ENDED      ends from any phase
        \\________________^    |
         ^____________________/   put back: its pages are gone, what it knows stays

Its first sequence computes the prompt; the others fork from it when that is done. One that was put
back is taken up by its first sequence that has not ended, and the others join that one.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from kvtier.blocks import MissReason
from kvtier.keys import BlockChain, BlockHash
from worker.admission import pages_needed, pages_soon
from worker.cache_port import CacheHints
from worker.grid import NO_GRID, Grid
from worker.prompt_account import PromptAccount
from worker.requests import LEASES_MAX, CacheMode, EngineRequest, EngineUsage, EventSink
from worker.sequence import TokenSequence

__all__ = ["LiveRequest", "Phase"]


class Phase(Enum):
    WAITING = "waiting"
    LOADING = "loading"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(slots=True, eq=False)
class LiveRequest:
    """Mutable; never leaves the engine."""

    request: EngineRequest
    sink: EventSink
    chain: BlockChain
    """Of the prompt's full blocks, with the rest of the prompt as its tail; the first sequence's
    from when that is there."""
    arrived: float
    account: PromptAccount
    grid: Grid = NO_GRID
    """Where its pieces end, whatever runs beside it."""
    phase: Phase = Phase.WAITING
    sequences: list[TokenSequence] = field(default_factory=list)
    miss_reason: MissReason = MissReason.NONE
    number: int = 0
    """In order of arrival."""
    admitted: int = 0
    """In order of admission, the last one's."""
    waiting_since: float = 0.0
    loading_since: float = 0.0
    queue_seconds: float = 0.0
    """Until the first token, waits that are over."""
    load_seconds: float = 0.0
    completion_tokens: int = 0
    written_tokens: int = 0
    """Of whole blocks that it computed and was the first to keep in pages."""
    preemptions: int = 0
    turn: float = 0.0
    """Of its tenant when it was admitted."""
    served: int = 0
    """Tokens computed for it since then."""
    prepaid: int = 0
    """Tokens that its tenant was charged for, and that are not computed yet."""
    resident_hint: int = 0
    """Leading blocks that were resident when last looked."""
    leases: list[Sequence[str]] = field(default_factory=list)
    """Of each load, those of the cache service that it was given so far."""
    stops: set[int] = field(default_factory=set)
    """Samples to end once the load under way is over."""

    @property
    def tenant(self) -> str:
        return self.request.tenant

    @property
    def prompt_tokens(self) -> int:
        return len(self.request.token_ids)

    @property
    def keeps(self) -> bool:
        """Whether what it computes stays in any tier."""
        return self.request.cache_mode is CacheMode.DEFAULT

    @property
    def cache_hints(self) -> CacheHints:
        """What the cache service is told of its blocks."""
        asked = self.request
        return CacheHints(asked.one_off, asked.ttl_seconds, asked.owners, adapter=asked.adapter)

    @property
    def open_sequences(self) -> Sequence[TokenSequence]:
        """Those that have not ended."""
        return [sequence for sequence in self.sequences if sequence.finish is None]

    @property
    def leader(self) -> TokenSequence:
        """The one that the others share the prompt of. Requires that one has not ended."""
        return next(sequence for sequence in self.sequences if sequence.finish is None)

    def until(self, now: float) -> float:
        """Until when what it stores or uses now may be used."""
        ttl = self.request.ttl_seconds
        return math.inf if ttl is None else now + ttl

    def load_limit(self, limit_seconds: float) -> float:
        """How long it waits for the cache service, where nobody waits longer than the limit."""
        asked = self.request.cache_timeout_seconds
        return limit_seconds if asked is None else min(asked, limit_seconds)

    def reusable_count(self, block_tokens: int) -> int:
        """Leading blocks of the leader's chain that may be reused: whole, and leaving at least one
        token to compute; in whole pieces where there is a grid."""
        if self.request.cache_mode is CacheMode.BYPASS:
            return 0
        return self.grid.whole((self.leader.known - 1) // block_tokens)

    def kept_count(self, blocks: int) -> int:
        """Of so many leading computed blocks those that others may find, if it keeps any."""
        return self.grid.kept(blocks, self.prompt_tokens)

    def reusable_chain(self, block_tokens: int) -> Sequence[BlockHash]:
        return self.leader.chain.hashes[: self.reusable_count(block_tokens)]

    def pages_max(self, block_tokens: int) -> int:
        """Pages that it can ever hold at once, from now on."""
        return pages_needed(
            self.prompt_tokens,
            self.request.max_completion_tokens,
            self._open_count(),
            block_tokens,
        )

    def pages_soon(self, block_tokens: int) -> int:
        """Pages for what is known of it, and one more for each sequence that can need it."""
        known = [sequence.known for sequence in self.open_sequences]
        # Those that have not forked yet know the prompt.
        known += [self.prompt_tokens] * (self._open_count() - len(known))
        soon = pages_soon(self.prompt_tokens, known, block_tokens)
        return min(soon, self.pages_max(block_tokens))

    def pages_held(self, block_tokens: int) -> int:
        """Pages of its tables; those of the prompt that all share counted once."""
        shared = self.prompt_tokens // block_tokens
        lengths = [len(sequence.table) for sequence in self.open_sequences]
        own = sum(max(0, length - shared) for length in lengths)
        return own + min(shared, max(lengths, default=0))

    def pages_growing(self, block_tokens: int) -> int:
        """Of a running one: pages that it may want next, one for each sequence."""
        left = self.pages_max(block_tokens) - self.pages_held(block_tokens)
        return min(self._open_count(), left)

    def waits(self, now: float) -> None:
        """It waits for pages from now on."""
        self.phase, self.waiting_since = Phase.WAITING, now

    def starts(self, now: float) -> None:
        """It has pages."""
        self.queue_seconds += self._until_first_token(self.waiting_since, now)
        self.phase = Phase.RUNNING

    def loads(self, now: float) -> None:
        """It waits for the cache service from now on."""
        self.phase, self.loading_since = Phase.LOADING, now

    def loaded(self, now: float) -> None:
        self.load_seconds += self._until_first_token(self.loading_since, now)
        self.phase = Phase.RUNNING

    def usage(self, now: float) -> EngineUsage:
        """What was reused and computed until `now`."""
        queue_seconds, load_seconds = self.queue_seconds, self.load_seconds
        if self.phase is Phase.WAITING:
            queue_seconds += self._until_first_token(self.waiting_since, now)
        elif self.phase is Phase.LOADING:
            load_seconds += self._until_first_token(self.loading_since, now)
        hits = self.account.hit_tokens_by_tier
        miss_tokens = self.account.computed_tokens
        return EngineUsage(
            prompt_tokens=sum(hits.values()) + miss_tokens,
            hit_tokens_by_tier=hits,
            miss_tokens=miss_tokens,
            completion_tokens=self.completion_tokens,
            queue_seconds=queue_seconds,
            load_seconds=load_seconds,
            miss_reason=self.miss_reason,
            written_tokens=self.written_tokens,
            lease_ids=tuple(itertools.islice(itertools.chain(*self.leases), LEASES_MAX)),
            runs=self.account.runs,
        )

    def _until_first_token(self, since: float, now: float) -> float:
        return 0.0 if self.account.closed else max(0.0, now - since)

    def _open_count(self) -> int:
        ended = sum(sequence.finish is not None for sequence in self.sequences)
        return self.request.sample_count - ended
