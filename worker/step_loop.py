"""One step of the engine: settle transfers, end what is late, admit, plan, compute, draw tokens.

    waiting -- admit --> loading -- settle --> running -- drawn to its end --> ended
        ^         \\___________________________^   |
         \\________________________________________/ put back: others need its pages

Invariant: every request that comes in ends with exactly one `RequestEnded`, and then holds neither
pages nor a reservation; a page is sealed only when the logits behind it are numbers. Everything
here runs on one thread; nothing here blocks.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

from kvtier.blocks import MissReason
from kvtier.keys import BlockHash
from worker.admitting import Admitting
from worker.batch import Pending, plan_pieces, plan_whole_pieces, step_size
from worker.endings import Endings
from worker.engine_state import EngineState
from worker.engine_stats import EngineStats
from worker.live_request import LiveRequest, Phase
from worker.model_runner import ModelRunner, Span
from worker.prefill_rate import PrefillRate
from worker.requests import EndReason, FinishReason, RequestEnded, RequestId, TokenEvent
from worker.room_making import RoomMaking
from worker.sampler import LogitRow, draw_token, read_rows
from worker.sequence import TokenSequence

__all__ = ["StepLoop"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Work:
    live: LiveRequest
    sequence: TokenSequence
    span: Span

    @property
    def decodes(self) -> bool:
        return len(self.span.token_ids) == 1

    @property
    def wanted(self) -> bool:
        return self.live.phase is Phase.RUNNING and self.sequence.finish is None


class StepLoop:
    """The engine's step, over its state."""

    def __init__(self, state: EngineState, runner: ModelRunner) -> None:
        self._state = state
        self._runner = runner
        self._prefill_rate = PrefillRate()
        self._endings = Endings(state)
        self._rooms = RoomMaking(state, self._endings)
        self._admitting = Admitting(state, self._endings, self._prefill_rate)
        self._prefill_tokens = 0
        self._decode_tokens = 0
        self._steps = 0

    @property
    def waiting_count(self) -> int:
        return len(self._state.waiting)

    @property
    def idle(self) -> bool:
        """Nothing to compute, nothing in flight."""
        traffic = self._state.traffic
        flying = traffic.in_flight_count if traffic is not None and traffic.usable else 0
        return not self._state.everyone() and not flying

    def resident_count(self, chain: Sequence[BlockHash]) -> int:
        """Leading blocks of `chain` that are in pages."""
        return self._state.residency.resident_blocks(chain)

    def accept(self, live: LiveRequest) -> None:
        self._state.accept(live)

    def cancel(self, request_id: RequestId, reason: EndReason) -> None:
        for live in self._state.everyone():
            if live.request.request_id == request_id:
                self._endings.end(live, reason)

    def stop_sample(self, request_id: RequestId, sample_index: int) -> None:
        for live in self._state.everyone():
            if live.request.request_id == request_id:
                for sequence in live.open_sequences:
                    if sequence.index == sample_index and sequence.generated:
                        self._stop(live, sequence)

    def fail_all(self, problem: str) -> None:
        """Ends every request with ERROR."""
        for live in self._state.everyone():
            self._endings.end(live, EndReason.ERROR, problem)

    def abandon_all(self, problem: str) -> None:
        """Tells every request that it ended, and leaves broken state alone. The loop is over."""
        for live in self._state.everyone():
            usage = live.usage(self._state.clock())
            live.phase = Phase.ENDED
            self._endings.emit(live, RequestEnded(EndReason.ERROR, usage, problem))

    def step(self) -> bool:
        """Computes once; False when there was nothing to do."""
        settled = self._admitting.settle()
        ended = self._end_late()
        admitted = self._admitting.admit()
        works = self._plan()
        if not works:
            return settled or ended or admitted
        self._steps += 1
        if self._state.grid.fixed:
            for work in works:
                # What comes before it in the step may have ended its request.
                if work.wanted:
                    self._compute([work])
        else:
            self._compute(works)
        return True

    def _compute(self, works: Sequence[_Work]) -> None:
        """One forward, and what follows from it."""
        began = self._state.clock()
        try:
            logits = self._runner.run([work.span for work in works])
            rows = read_rows(logits)  # on a device, this is what waits for it
        except Exception as error:
            log.exception("a step failed; ending its requests")
            for work in works:
                problem = f"the model failed: {type(error).__name__}"
                self._endings.end(work.live, EndReason.ERROR, problem)
            return
        pieces = [work.span for work in works if not work.decodes]
        seconds = self._state.clock() - began
        self._prefill_rate.step(pieces, len(works) - len(pieces), seconds)
        for work, row in zip(works, rows, strict=True):
            self._advance(work, row)

    def stats(self) -> EngineStats:
        state = self._state
        pool, traffic = state.residency.pool, state.traffic
        loading = sum(live.phase is Phase.LOADING for live in state.running)
        return EngineStats(
            page_count=pool.capacity,
            free_page_count=max(0, pool.free_count),
            cached_page_count=pool.idle_count,
            waiting_count=len(state.waiting),
            loading_count=loading,
            running_count=len(state.running) - loading,
            prefill_tokens_per_second=int(self._prefill_rate.tokens_per_second or 0),
            prefill_tokens_total=self._prefill_tokens,
            decode_tokens_total=self._decode_tokens,
            recomputed_tokens_total=state.recomputed_tokens,
            preemptions_total=state.preemptions,
            steps_total=self._steps,
            evicted_pages_total=state.residency.evicted_count,
            restored_blocks_total=traffic.restored_blocks if traffic else 0,
            abandoned_transfers_total=traffic.abandoned if traffic else 0,
            offered_blocks_total=traffic.offered_blocks if traffic else 0,
            skipped_stores_total=traffic.skipped_stores if traffic else 0,
        )

    def check_integrity(self) -> None:
        """Raises AssertionError when a page or a reservation has leaked."""
        state = self._state
        state.residency.check_integrity(state.running)
        if state.traffic is not None:
            state.traffic.check_integrity()
        for live in state.waiting:
            assert not live.pages_held(state.block_tokens), "a waiting request has pages"
        if self.idle and (state.traffic is None or state.traffic.usable):
            pool = state.residency.pool
            assert pool.used_count == pool.idle_count, "pages are held by nobody alive"

    def _end_late(self) -> bool:
        late = self._state.deadlines.late(self._state.clock())
        for live in late:
            self._endings.end(live, EndReason.DEADLINE)
        return bool(late)

    def _stop(self, live: LiveRequest, sequence: TokenSequence) -> None:
        if live.phase is Phase.LOADING:
            # A transfer may be writing its pages.
            live.stops.add(sequence.index)
        else:
            self._endings.finish(live, sequence, FinishReason.STOP)

    def _plan(self) -> list[_Work]:
        state, first = self._state, self._rooms.first()
        pairs = [
            (live, sequence)
            for live in sorted(state.running, key=_place)
            if live.phase is Phase.RUNNING
            for sequence in live.open_sequences
            if not state.residency.parked(live, sequence)
        ]
        pendings = [Pending(s.computed, s.known, live is first) for live, s in pairs]
        settings = state.settings
        if state.grid.fixed:
            ends = plan_whole_pieces(pendings, settings.step_tokens, state.grid)
        else:
            size = step_size(pendings, settings.step_tokens, settings.prompt_step_tokens)
            ends = plan_pieces(pendings, size, state.block_tokens)
        works = []
        for (live, sequence), end in zip(pairs, ends, strict=True):
            # Making room for one may put back another.
            wanted = end > sequence.computed and live.phase is Phase.RUNNING
            if wanted and self._rooms.make_room(live, sequence, end):
                works.append(self._work(live, sequence, end))
        return [work for work in works if work.live.phase is Phase.RUNNING]

    def _work(self, live: LiveRequest, sequence: TokenSequence, end: int) -> _Work:
        tokens = sequence.tokens(sequence.computed, end)
        # Also in the middle of a prompt: `_advance` judges the span's KV by them.
        adapter = live.request.adapter
        span = Span(tokens, sequence.computed, sequence.table.pages, 1, adapter)
        return _Work(live, sequence, span)

    def _advance(self, work: _Work, row: LogitRow) -> None:
        live, sequence, span = work.live, work.sequence, work.span
        if live.phase is not Phase.RUNNING:
            return
        # The last token saw all of the span's KV: what is no number there is none here. The largest
        # logit is NaN when one is; infinite, it leaves no chances to draw by.
        if not math.isfinite(row.largest):
            self._endings.end(live, EndReason.ERROR, "the model's logits are not numbers")
            return
        self._count(live, sequence, span)
        sequence.has(span.end)
        if live.keeps:
            written = self._state.residency.seal(live, sequence)
            live.written_tokens += written * self._state.block_tokens
        self._state.residency.join(live)
        if sequence.pending == 0:
            if live.account.closed:
                self._draw(live, sequence, row)
            else:
                self._prompt_done(live, row)

    def _count(self, live: LiveRequest, sequence: TokenSequence, span: Span) -> None:
        """Who computed what for whom; before the sequence has it."""
        new = max(0, span.end - max(span.start, sequence.reached))
        decoded = max(0, span.end - max(span.start, sequence.reached, live.prompt_tokens))
        self._decode_tokens += decoded
        self._prefill_tokens += len(span.token_ids) - decoded
        self._state.recomputed_tokens += len(span.token_ids) - new
        self._state.computed(live, new)
        if live.account.computed(span.start, min(span.end, live.prompt_tokens)):
            live.miss_reason = MissReason.EVICTED

    def _prompt_done(self, live: LiveRequest, row: LogitRow) -> None:
        live.account.close()
        self._state.residency.fork(live)
        for sequence in list(live.sequences):
            if live.phase is Phase.RUNNING:
                self._draw(live, sequence, row)
        # After the first token: it waits for nothing that is not for it. One that has ended has
        # offered its own.
        if live.phase is Phase.RUNNING and live.sequences[0].finish is None:
            self._endings.offer(live, live.sequences[0])

    def _draw(self, live: LiveRequest, sequence: TokenSequence, row: LogitRow) -> None:
        request = live.request
        drawn = draw_token(row, request.sampling, sequence.generator, sequence.generated)
        token = drawn.token_id
        if token in request.stop_token_ids:
            self._endings.finish(live, sequence, FinishReason.STOP)
            return
        sequence.draw(token)
        live.completion_tokens += 1
        self._endings.emit(live, TokenEvent(sequence.index, token, drawn.logprob))
        if len(sequence.generated) == request.max_completion_tokens:
            self._endings.finish(live, sequence, FinishReason.LENGTH)


def _place(live: LiveRequest) -> tuple[float, ...]:
    """In the batch: by priority, then by turn, which moves on with what is computed for it."""
    return (-live.request.priority, live.turn + live.served, live.admitted)
