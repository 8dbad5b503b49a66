"""Admitting: who waits gets pages, and blocks of the cache service where it has some.

    waiting -- pages --> loading -- blocks, or time is up --> running
                  \\___________________________________________^

What a load has brought so far is resident at once: others that want the same wait no longer for it.

Invariant: nobody waits for the cache service longer than its limit, and only who is not running.
Owned by the engine's thread.
"""

from kvtier.blocks import MissReason, Tier
from worker.admission import PASSES_MAX, AdmissionOrder, Candidate, admission_order
from worker.cache_traffic import STORE_SECONDS_MAX, CacheTraffic, LoadOutcome
from worker.endings import Endings
from worker.engine_state import EngineState
from worker.live_request import LiveRequest, Phase
from worker.preemption import PREEMPTIONS_MAX
from worker.prefill_rate import PrefillRate
from worker.requests import CacheMode, FinishReason

__all__ = ["Admitting"]

_WHOLE_REASONS = (
    MissReason.NONE,
    MissReason.WITHIN_UNIT,
    MissReason.NEVER_STORED,
    MissReason.EVICTED,
    MissReason.PURGED,
)
"""Why a restore of whole units ends where one does: it was not cut on the way."""


class Admitting:
    def __init__(self, state: EngineState, endings: Endings, rate: PrefillRate) -> None:
        self._state = state
        self._endings = endings
        self._rate = rate
        self._passes = 0
        """Admissions since one that waited past the age limit could have gone, and did not."""
        self._missing_pages = 0
        """For the first request that did not fit when last looked."""

    def admit(self) -> bool:
        """Admits all that fit; whether there was one."""
        state, admitted = self._state, False
        self._missing_pages = 0
        while len(state.waiting) and len(state.running) < state.settings.running_requests_max:
            if not self._admit_one():
                break
            admitted = True
        return admitted

    def settle(self) -> bool:
        """Takes in transfers that are over; whether there was a load."""
        traffic = self._state.traffic
        if traffic is None:
            return False
        outcomes = traffic.settle(self._store_seconds(traffic))
        for outcome in outcomes:
            if outcome.live.phase is Phase.LOADING:
                self._loaded(outcome)
        self._state.residency.trim()
        return bool(outcomes)

    def _admit_one(self) -> bool:
        state, now = self._state, self._state.clock()
        waiting = {live.number: live for live in state.waiting.candidates(state.shares.turn)}
        order = admission_order(
            [self._candidate(live, now) for live in waiting.values()],
            state.settings.age_limit_seconds,
            oldest_first=self._passes >= PASSES_MAX,
        )
        for position in order.positions:
            live = waiting[position]
            if self._fits(live):
                self._count_passes(order, position)
                self._start(live, now)
                return True
            if position in order.strict:
                return False
        return False

    def _count_passes(self, order: AdmissionOrder, position: int) -> None:
        passed = order.oldest is not None and order.oldest != position
        self._passes = self._passes + 1 if passed else 0

    def _candidate(self, live: LiveRequest, now: float) -> Candidate:
        resident = self._state.residency.look(live)
        return Candidate(
            position=live.number,
            waited_seconds=now - live.arrived,
            resident_blocks=self._state.residency.usable(live),
            stands_back=self._is_coming(live, resident),
            priority=live.request.priority,
            turn=self._state.shares.turn(live.tenant),
            deadline=live.request.deadline,
        )

    def _is_coming(self, live: LiveRequest, resident: int) -> bool:
        """Whether a running request is about to make its next block resident."""
        if resident >= live.reusable_count(self._state.block_tokens):
            return False
        # A block's hash names all before it: it can be at this place only.
        block = live.leader.chain.hashes[resident]
        return any(
            other.leader.sealed_blocks <= resident
            and other.leader.chain.hashes[resident : resident + 1] == [block]
            and resident < other.kept_count(len(other.leader.chain.hashes))
            for other in self._state.running
            if other.keeps
        )

    def _fits(self, live: LiveRequest) -> bool:
        state = self._state
        growing = (
            other.pages_growing(state.block_tokens)
            for other in state.running
            if not state.residency.reserves(other)
        )
        missing = state.residency.missing_pages(live, sum(growing), reserve=_reserves(live))
        if missing > 0:
            self._missing_pages = self._missing_pages or missing
        return missing <= 0

    def _start(self, live: LiveRequest, now: float) -> None:
        state = self._state
        resident = state.residency.admit(live, reserve=_reserves(live))
        live.account.reused(0, [Tier.GPU] * min(resident, _whole_blocks(live, state.block_tokens)))
        state.admit(live, now)
        end = live.reusable_count(state.block_tokens)
        reason = MissReason.NONE
        if live.request.cache_mode is CacheMode.BYPASS:
            reason = MissReason.NO_STORE
        elif end == 0:
            reason = MissReason.TOO_SHORT
        elif resident < end:
            reason = self._load(live, resident, end, now)
        self._note_miss(live, reason)
        if live.phase is Phase.RUNNING:
            state.residency.join(live)

    def _note_miss(self, live: LiveRequest, reason: MissReason) -> None:
        """One that is taken up again reuses its own blocks: that says nothing of the prompt."""
        if not live.preemptions and not live.account.closed:
            live.miss_reason = reason

    def _load(self, live: LiveRequest, first: int, end: int, now: float) -> MissReason:
        """Asks the cache service for blocks `[first, end)`, where the request has time for it."""
        seconds = live.load_limit(self._state.settings.load_timeout_seconds)
        if seconds <= 0:
            return MissReason.DEADLINE
        # Before the load, which runs at once where there are no threads.
        live.loads(now)
        cost = self._recompute_seconds(live, first, end)
        traffic = self._state.traffic
        if traffic is None or not traffic.load(live, first, end, seconds, cost):
            live.loaded(now)
        return MissReason.UNAVAILABLE

    def _recompute_seconds(self, live: LiveRequest, first: int, end: int) -> float | None:
        """What a block of `[first, end)` of a prompt costs to compute, its turn included: prompts
        that came before are computed while it loads, and are waited for when it does not."""
        tokens = self._state.block_tokens
        spans = [
            (sequence.computed, sequence.known)
            for other in self._state.running
            if other.phase is Phase.RUNNING
            for sequence in other.open_sequences
            if sequence.pending > 1
        ]
        seconds = self._rate.seconds_of([(first * tokens, end * tokens), *spans])
        return None if seconds is None else seconds / (end - first)

    def _store_seconds(self, traffic: CacheTraffic) -> float:
        """Nobody waits longer for pages that only stores hold than for blocks."""
        if not 0 < self._missing_pages <= traffic.stored_page_count():
            return STORE_SECONDS_MAX
        return min(self._state.settings.load_timeout_seconds, STORE_SECONDS_MAX)

    def _loaded(self, outcome: LoadOutcome) -> None:
        state, live = self._state, outcome.live
        tiers = outcome.result.tiers
        if not outcome.over:
            self._restored(live, outcome)
            return
        live.loaded(state.clock())
        if outcome.stuck:
            end = outcome.first_block + outcome.block_count
            blocks = range(outcome.first_block + len(tiers), end)
            state.residency.swap_out(live.leader, blocks)
        whole = len(tiers) == outcome.block_count
        self._note_miss(live, MissReason.NONE if whole else outcome.result.miss_reason)
        if tiers:
            self._restored(live, outcome)
            state.residency.join(live)
        for index in sorted(live.stops):
            self._endings.finish(live, live.sequences[index], FinishReason.STOP)
        live.stops.clear()

    def _restored(self, live: LiveRequest, outcome: LoadOutcome) -> None:
        state, sequence = self._state, live.leader
        # A part of a piece is computed with the rest of it.
        whole = live.grid.whole(outcome.first_block + len(outcome.result.tiers))
        tiers = outcome.result.tiers[: max(0, whole - outcome.first_block)]
        tokens = len(tiers) * state.block_tokens
        ours = _whole_blocks(live, state.block_tokens) - outcome.first_block
        live.account.reused(outcome.first_block, tiers[: max(0, ours)])
        state.restored(live, tokens)
        sequence.has(sequence.computed + tokens)
        if live.keeps:
            state.residency.seal(live, sequence)
            if state.settings.units.whole and outcome.result.miss_reason in _WHOLE_REASONS:
                state.residency.end_units(sequence, [sequence.sealed_blocks])


def _reserves(live: LiveRequest) -> bool:
    """Whether it was put back so often that it stays from now on, or may never be: on a grid what
    it would lose would be computed again in other pieces."""
    return live.grid.fixed or live.preemptions >= PREEMPTIONS_MAX


def _whole_blocks(live: LiveRequest, block_tokens: int) -> int:
    """Of its prompt."""
    return live.prompt_tokens // block_tokens
