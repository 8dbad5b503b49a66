"""One step of the engine: settle transfers, admit, plan, compute, hand out tokens.

    waiting -- admit --> loading -- settle --> prefill -- prompt computed --> decode --> ended
                  \\_______________________________^

Invariant: every request that comes in ends with exactly one `RequestEnded`, and then holds neither
pages nor a reservation; a page is sealed only when the logits behind it are numbers. Everything
here runs on one thread; nothing here blocks.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvtier.blocks import MissReason
from kvtier.keys import BlockHash
from worker.admission import CANDIDATES_MAX, Candidate, admission_order, pages_needed
from worker.cache_traffic import STORE_SECONDS_MAX, CacheTraffic, LoadOutcome
from worker.engine_settings import EngineSettings
from worker.engine_stats import EngineStats
from worker.live_request import LiveRequest, Phase, Sample
from worker.model_runner import ModelRunner, Span
from worker.prefill_rate import PrefillRate
from worker.requests import (
    CacheMode,
    EndReason,
    EngineEvent,
    FinishReason,
    RequestEnded,
    RequestId,
    SampleEnded,
    TokenEvent,
)
from worker.residency import Residency
from worker.sampler import LogitRow, draw_token, read_rows
from worker.scheduler import PromptProgress, plan_prompts

__all__ = ["StepLoop"]

log = logging.getLogger(__name__)

_WHOLE_REASONS = (
    MissReason.NONE,
    MissReason.WITHIN_UNIT,
    MissReason.NEVER_STORED,
    MissReason.EVICTED,
    MissReason.PURGED,
)
"""Why a restore of whole units ends where one does: it was not cut on the way."""


@dataclass(frozen=True, slots=True)
class _Work:
    live: LiveRequest
    sample: Sample
    span: Span


class StepLoop:
    """The engine's state and its step. `traffic` is None without a cache service."""

    def __init__(
        self,
        settings: EngineSettings,
        block_tokens: int,
        runner: ModelRunner,
        residency: Residency,
        traffic: CacheTraffic | None,
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._block_tokens = block_tokens
        self._runner = runner
        self._residency = residency
        self._traffic = traffic
        self._clock = clock
        self._waiting: list[LiveRequest] = []
        self._running: list[LiveRequest] = []
        self._prefill_rate = PrefillRate()
        self._prefill_tokens = 0
        self._decode_tokens = 0
        self._steps = 0

    @property
    def waiting_count(self) -> int:
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Nothing to compute, nothing in flight."""
        flying = self._traffic.in_flight_count if self._traffic and self._traffic.usable else 0
        return not self._waiting and not self._running and not flying

    def resident_count(self, chain: Sequence[BlockHash]) -> int:
        """Leading blocks of `chain` that are in pages."""
        return self._residency.resident_blocks(chain)

    def accept(self, live: LiveRequest) -> None:
        self._waiting.append(live)

    def cancel(self, request_id: RequestId, reason: EndReason) -> None:
        for live in [*self._waiting, *self._running]:
            if live.request.request_id == request_id:
                self._end(live, reason)

    def stop_sample(self, request_id: RequestId, sample_index: int) -> None:
        for live in list(self._running):
            if live.request.request_id == request_id and live.phase is Phase.DECODE:
                for sample in live.samples:
                    if sample.index == sample_index and sample.finish is None:
                        self._finish_sample(live, sample, FinishReason.STOP)

    def fail_all(self, problem: str) -> None:
        """Ends every request with ERROR."""
        for live in [*self._waiting, *self._running]:
            self._end(live, EndReason.ERROR, problem)

    def abandon_all(self, problem: str) -> None:
        """Tells every request that it ended, and leaves broken state alone. The loop is over."""
        for live in [*self._waiting, *self._running]:
            live.phase = Phase.ENDED
            ended = RequestEnded(EndReason.ERROR, live.usage(self._clock()), problem)
            self._emit(live, ended)

    def step(self) -> bool:
        """Computes once; False when there was nothing to do."""
        settled = self._settle_loads()
        admitted = self._admit()
        works = self._plan()
        if not works:
            return settled or admitted
        self._steps += 1
        began = self._clock()
        try:
            logits = self._runner.run([work.span for work in works])
            rows = read_rows(logits)  # on a device, this is what waits for it
        except Exception as error:
            log.exception("a step failed; ending its requests")
            for work in works:
                self._end(work.live, EndReason.ERROR, f"the model failed: {type(error).__name__}")
            return True
        prompts = [work.span for work in works if work.live.phase is Phase.PREFILL]
        self._prefill_rate.step(prompts, len(works) - len(prompts), self._clock() - began)
        for work, row in zip(works, rows, strict=True):
            self._advance(work, row)
        return True

    def stats(self) -> EngineStats:
        pool, traffic = self._residency.pool, self._traffic
        loading = sum(live.phase is Phase.LOADING for live in self._running)
        return EngineStats(
            page_count=pool.capacity,
            free_page_count=max(0, pool.free_count),
            cached_page_count=pool.idle_count,
            waiting_count=len(self._waiting),
            loading_count=loading,
            running_count=len(self._running) - loading,
            prefill_tokens_per_second=int(self._prefill_rate.tokens_per_second or 0),
            prefill_tokens_total=self._prefill_tokens,
            decode_tokens_total=self._decode_tokens,
            steps_total=self._steps,
            evicted_pages_total=self._residency.evicted_count,
            restored_blocks_total=traffic.restored_blocks if traffic else 0,
            abandoned_transfers_total=traffic.abandoned if traffic else 0,
            offered_blocks_total=traffic.offered_blocks if traffic else 0,
            skipped_stores_total=traffic.skipped_stores if traffic else 0,
        )

    def check_integrity(self) -> None:
        """Raises AssertionError when a page or a reservation has leaked."""
        self._residency.check_integrity(self._running)
        if self._traffic is not None:
            self._traffic.check_integrity()
        if self.idle and (self._traffic is None or self._traffic.usable):
            pool = self._residency.pool
            assert pool.used_count == pool.idle_count, "pages are held by nobody alive"

    # Admission and loading

    def _admit(self) -> bool:
        admitted = False
        while self._waiting and len(self._running) < self._settings.running_requests_max:
            if not self._admit_one():
                break
            admitted = True
        return admitted

    def _admit_one(self) -> bool:
        now = self._clock()
        order = admission_order(self._candidates(now), self._settings.age_limit_seconds)
        for place, position in enumerate(order.positions):
            live = self._waiting[position]
            if self._residency.admit(live, self._pages_needed(live)):
                del self._waiting[position]
                self._start(live, now)
                return True
            if place < order.strict_count:
                return False
        return False

    def _candidates(self, now: float) -> list[Candidate]:
        coming = {
            block
            for live in self._running
            if live.keeps and live.phase in (Phase.LOADING, Phase.PREFILL)
            for block in live.chain.hashes[live.samples[0].sealed_blocks :]
        }
        candidates = []
        for position, live in enumerate(self._waiting[:CANDIDATES_MAX]):
            chain = live.reusable_chain(self._block_tokens)
            resident = self._residency.resident_blocks(chain)
            stands_back = resident < len(chain) and chain[resident] in coming
            candidates.append(Candidate(position, now - live.arrived, resident, stands_back))
        return candidates

    def _pages_needed(self, live: LiveRequest) -> int:
        request = live.request
        return pages_needed(
            live.prompt_tokens,
            request.max_completion_tokens,
            request.sample_count,
            self._block_tokens,
        )

    def _start(self, live: LiveRequest, now: float) -> None:
        live.admitted = live.loaded = now
        live.phase = Phase.PREFILL
        self._running.append(live)
        first = live.samples[0].sealed_blocks
        end = len(live.reusable_chain(self._block_tokens))
        if live.request.cache_mode is CacheMode.BYPASS:
            live.miss_reason = MissReason.NO_STORE
        elif end == 0:
            live.miss_reason = MissReason.TOO_SHORT
        elif first < end:
            self._load(live, first, end)

    def _load(self, live: LiveRequest, first: int, end: int) -> None:
        """Asks the cache service for blocks `[first, end)`, where the request has time for it."""
        seconds = live.load_seconds(self._settings.load_timeout_seconds)
        if seconds <= 0:
            live.miss_reason = MissReason.DEADLINE
            return
        live.miss_reason = MissReason.UNAVAILABLE
        # Before the load, which runs at once where there are no threads.
        live.phase = Phase.LOADING
        cost = self._recompute_seconds(first, end)
        if self._traffic is None or not self._traffic.load(live, first, end, seconds, cost):
            live.phase = Phase.PREFILL

    def _recompute_seconds(self, first: int, end: int) -> float | None:
        """What a block of `[first, end)` of a prompt costs to compute, its turn included: prompts
        that came before are computed while it loads, and are waited for when it does not."""
        tokens, rate = self._block_tokens, self._prefill_rate
        before = [live for live in self._running if live.phase is Phase.PREFILL]
        spans = [(live.samples[0].computed, live.prompt_tokens) for live in before]
        seconds = rate.seconds_of([(first * tokens, end * tokens), *spans])
        return None if seconds is None else seconds / (end - first)

    def _settle_loads(self) -> bool:
        if self._traffic is None:
            return False
        outcomes = self._traffic.settle(self._store_seconds(self._traffic))
        for outcome in outcomes:
            if outcome.live.phase is Phase.LOADING:
                self._loaded(outcome)
        return bool(outcomes)

    def _store_seconds(self, traffic: CacheTraffic) -> float:
        """Nobody waits longer for pages that only stores hold than for blocks."""
        if not self._waiting or len(self._running) >= self._settings.running_requests_max:
            return STORE_SECONDS_MAX
        first = self._waiting[0]
        missing = self._residency.missing_pages(first, self._pages_needed(first))
        if not 0 < missing <= traffic.stored_page_count():
            return STORE_SECONDS_MAX
        return min(self._settings.load_timeout_seconds, STORE_SECONDS_MAX)

    def _loaded(self, outcome: LoadOutcome) -> None:
        live, sample = outcome.live, outcome.live.samples[0]
        live.loaded = self._clock()
        live.miss_reason = outcome.result.miss_reason
        live.phase = Phase.PREFILL
        if outcome.stuck:
            blocks = range(outcome.first_block, outcome.first_block + outcome.block_count)
            self._residency.swap_out(sample, blocks)
            return
        for tier in outcome.result.tiers:
            hits = live.hit_tokens_by_tier.get(tier, 0)
            live.hit_tokens_by_tier[tier] = hits + self._block_tokens
        sample.computed += len(outcome.result.tiers) * self._block_tokens
        if len(outcome.result.tiers) == outcome.block_count:
            live.miss_reason = MissReason.NONE
        if live.keeps:
            self._residency.seal(live, sample)
            whole = self._settings.units.whole and outcome.result.miss_reason in _WHOLE_REASONS
            if whole and outcome.result.tiers:
                self._residency.end_units(sample, [sample.sealed_blocks])

    # Computing

    def _plan(self) -> list[_Work]:
        works = [
            self._work(live, sample, sample.computed + 1)
            for live in self._running
            if live.phase is Phase.DECODE
            for sample in live.samples
            if sample.finish is None
        ]
        prompts = [live for live in self._running if live.phase is Phase.PREFILL]
        progress = [PromptProgress(p.samples[0].computed, p.prompt_tokens) for p in prompts]
        ends = plan_prompts(progress, len(works), self._settings.step_tokens, self._block_tokens)
        for live, end in zip(prompts, ends, strict=True):
            if end > live.samples[0].computed:
                works.append(self._work(live, live.samples[0], end))
        return works

    def _work(self, live: LiveRequest, sample: Sample, end: int) -> _Work:
        self._residency.grow(sample, end)
        tokens = live.tokens_of(sample, sample.computed, end)
        # Also in the middle of a prompt: `_advance` judges the span's KV by them.
        return _Work(live, sample, Span(tokens, sample.computed, sample.table.pages, 1))

    def _advance(self, work: _Work, row: LogitRow) -> None:
        live, sample = work.live, work.sample
        if live.phase is Phase.ENDED:
            return
        # The last token saw all of the span's KV: what is no number there is none here. The largest
        # logit is NaN when one is; infinite, it leaves no chances to draw by.
        if not math.isfinite(row.largest):
            self._end(live, EndReason.ERROR, "the model's logits are not numbers")
            return
        sample.computed = work.span.end
        if live.phase is Phase.DECODE:
            self._decode_tokens += 1
            sample.chain.extend(work.span.token_ids)
        else:
            self._prefill_tokens += len(work.span.token_ids)
        if live.keeps:
            live.written_tokens += self._residency.seal(live, sample) * self._block_tokens
        if live.phase is Phase.DECODE:
            self._draw(live, sample, row)
        elif sample.computed == live.prompt_tokens:
            self._prompt_done(live, row)

    def _prompt_done(self, live: LiveRequest, row: LogitRow) -> None:
        live.phase = Phase.DECODE
        self._residency.fork(live)
        self._offer(live, live.samples[0])
        for sample in list(live.samples):
            if live.phase is Phase.DECODE:
                self._draw(live, sample, row)

    def _draw(self, live: LiveRequest, sample: Sample, row: LogitRow) -> None:
        request = live.request
        drawn = draw_token(row, request.sampling, sample.generator, sample.generated)
        token = drawn.token_id
        if token in request.stop_token_ids:
            self._finish_sample(live, sample, FinishReason.STOP)
            return
        sample.generated.append(token)
        live.completion_tokens += 1
        self._emit(live, TokenEvent(sample.index, token, drawn.logprob))
        if len(sample.generated) == request.max_completion_tokens:
            self._finish_sample(live, sample, FinishReason.LENGTH)

    # Ending

    def _finish_sample(self, live: LiveRequest, sample: Sample, finish: FinishReason) -> None:
        sample.finish = finish
        self._offer(live, sample)
        self._residency.give_back(sample)
        self._emit(live, SampleEnded(sample.index, finish))
        if all(s.finish is not None for s in live.samples):
            lengths = any(s.finish is FinishReason.LENGTH for s in live.samples)
            self._end(live, EndReason.LENGTH if lengths else EndReason.STOP)

    def _end(self, live: LiveRequest, reason: EndReason, problem: str = "") -> None:
        if live.phase is Phase.ENDED:
            return
        (self._waiting if live.phase is Phase.WAITING else self._running).remove(live)
        live.phase = Phase.ENDED
        for sample in live.samples:
            if sample.finish is None:
                if reason is not EndReason.ERROR:
                    self._offer(live, sample)
                self._residency.give_back(sample)
        self._emit(live, RequestEnded(reason, live.usage(self._clock()), problem))

    def _offer(self, live: LiveRequest, sample: Sample) -> None:
        if not live.keeps:
            return
        ends = self._settings.units.ends(
            live.prompt_tokens,
            sample.sealed_blocks,
            self._block_tokens,
            output_ended=sample.finish is not None,
        )
        self._residency.end_units(sample, ends)
        if self._traffic is not None and sample.sealed_blocks > live.offered_blocks:
            self._traffic.offer(live, sample, ends)
            live.offered_blocks = min(
                sample.sealed_blocks, live.prompt_tokens // self._block_tokens
            )

    def _emit(self, live: LiveRequest, event: EngineEvent) -> None:
        try:
            live.sink(event)
        except Exception:
            log.exception("a request's sink raised", extra={"request_id": live.request.request_id})
