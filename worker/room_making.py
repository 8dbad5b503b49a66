"""RoomMaking: pages for who runs, when none is free.

    free or idle pages -> lent against a transfer's -> another request is put back -> not this step

Invariant: the first admitted request is put back only for one that has its pages reserved, that one
never, and none more often than `PREEMPTIONS_MAX`: so somebody always gets on. What was lent to the
first may be missing from what is reserved when the transfer is over, and neither would get on.
Owned by the engine's thread.
"""

from worker.endings import Endings
from worker.engine_state import EngineState
from worker.live_request import LiveRequest, Phase
from worker.preemption import Victim, choose_victim
from worker.sequence import TokenSequence

__all__ = ["RoomMaking"]


class RoomMaking:
    def __init__(self, state: EngineState, endings: Endings) -> None:
        self._state = state
        self._endings = endings

    def first(self) -> LiveRequest | None:
        """The one that must get on: of those that compute, the first admitted."""
        computing = (live for live in self._state.running if live.phase is Phase.RUNNING)
        return next(computing, None)

    def make_room(self, live: LiveRequest, sequence: TokenSequence, tokens: int) -> bool:
        """The sequence's table has room for its first `tokens` tokens; False: it has to wait, or
        was put back itself."""
        residency = self._state.residency
        count = residency.growth(sequence, tokens)
        while count > residency.room(live):
            missing = count - residency.room(live)
            if self._state.traffic is not None and self._state.traffic.lend(missing):
                continue
            victim = self._victim() or self._first_for(live)
            if victim is None:
                return False
            self.preempt(victim)
            if victim is live:
                return False
        residency.grow(sequence, tokens)
        return True

    def preempt(self, live: LiveRequest) -> None:
        """Puts it back because others want its pages."""
        state = self._state
        live.preemptions += 1
        state.preemptions += 1
        # A store holds the pages that it copies. Behind another one it would for long.
        if state.traffic is not None and not state.traffic.storing:
            for sequence in live.open_sequences:
                self._endings.offer(live, sequence)
        state.put_back(live)

    def _first_for(self, live: LiveRequest) -> LiveRequest | None:
        """The first admitted, where it holds what `live` has reserved."""
        first, residency = self.first(), self._state.residency
        if first is None or not residency.reserves(live) or residency.reserves(first):
            return None
        return first

    def _victim(self) -> LiveRequest | None:
        state, first = self._state, self.first()
        victims = [
            Victim(
                position,
                live.request.priority,
                live.keeps,
                state.shares.turn(live.tenant),
                live.admitted,
                live is first or state.residency.reserves(live),
            )
            for position, live in enumerate(state.running)
            if live.phase is Phase.RUNNING
        ]
        position = choose_victim(victims)
        return None if position is None else state.running[position]
