"""Endings: a sample ends, a request ends, and what it leaves is offered.

Invariant: every request that comes in is told `RequestEnded` once, and then holds neither pages nor
a reservation. Owned by the engine's thread.
"""

import logging

from worker.engine_state import EngineState
from worker.live_request import LiveRequest, Phase
from worker.requests import (
    EndReason,
    EngineEvent,
    FinishReason,
    RequestEnded,
    SampleEnded,
)
from worker.sequence import TokenSequence

__all__ = ["Endings"]

log = logging.getLogger(__name__)


class Endings:
    def __init__(self, state: EngineState) -> None:
        self._state = state

    def finish(self, live: LiveRequest, sequence: TokenSequence, reason: FinishReason) -> None:
        """Ends a sample, and the request with its last one."""
        sequence.finish = reason
        self.offer(live, sequence)
        sequence.give_back()
        self.emit(live, SampleEnded(sequence.index, reason))
        if not live.open_sequences:
            lengths = any(s.finish is FinishReason.LENGTH for s in live.sequences)
            self.end(live, EndReason.LENGTH if lengths else EndReason.STOP)
        elif live.phase is Phase.RUNNING and not len(live.leader.table):
            # It waited for this one to have the prompt, and has nothing of it.
            self._state.put_back(live)

    def end(self, live: LiveRequest, reason: EndReason, problem: str = "") -> None:
        """Ends the request, if it has not ended."""
        if live.phase is Phase.ENDED:
            return
        if reason is not EndReason.ERROR:
            for sequence in live.open_sequences:
                self.offer(live, sequence)
        self._state.forget(live)
        usage = live.usage(self._state.clock())
        live.phase = Phase.ENDED
        self.emit(live, RequestEnded(reason, usage, problem))

    def offer(self, live: LiveRequest, sequence: TokenSequence) -> None:
        """Offers the cache service what it was not offered yet, and marks where units end."""
        if not live.keeps:
            return
        state = self._state
        ends = state.settings.units.ends(
            live.prompt_tokens,
            sequence.sealed_blocks,
            state.block_tokens,
            output_ended=sequence.finish is not None,
        )
        state.residency.end_units(sequence, ends)
        if state.traffic is not None and sequence.sealed_blocks > sequence.offered_blocks:
            state.traffic.offer(live, sequence, ends)
            sequence.offered_blocks = sequence.sealed_blocks

    def emit(self, live: LiveRequest, event: EngineEvent) -> None:
        try:
            live.sink(event)
        except Exception:
            log.exception("a request's sink raised", extra={"request_id": live.request.request_id})
