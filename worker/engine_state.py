"""What the parts of the engine's step share: who waits, who runs, what there is to run on.

    StepLoop    orders the parts, plans and computes
    Admitting   waiting -> running, by way of the cache service
    RoomMaking  pages for who runs; running -> waiting
    Endings     whatever ends

Invariant: a request is in the waiting room or running, until it ends; tenants are charged for what
is computed, once. Owned by the engine's thread.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from worker.cache_traffic import CacheTraffic
from worker.deadlines import Deadlines
from worker.engine_settings import EngineSettings
from worker.fair_share import FairShare
from worker.grid import NO_GRID, Grid
from worker.live_request import LiveRequest, Phase
from worker.residency import Residency
from worker.waiting_room import WaitingRoom

__all__ = ["EngineState"]


@dataclass(slots=True)
class EngineState:
    """`traffic` is None without a cache service. `clock`: seconds, monotonic."""

    settings: EngineSettings
    block_tokens: int
    residency: Residency
    traffic: CacheTraffic | None
    clock: Callable[[], float]
    grid: Grid = NO_GRID
    waiting: WaitingRoom = field(default_factory=WaitingRoom)
    running: list[LiveRequest] = field(default_factory=list)
    """In order of admission; loading ones too."""
    shares: FairShare = field(default_factory=FairShare)
    deadlines: Deadlines = field(default_factory=Deadlines)
    arrivals: int = 0
    admissions: int = 0
    preemptions: int = 0
    recomputed_tokens: int = 0

    def accept(self, live: LiveRequest) -> None:
        """A new request waits from now on."""
        live.number = self.arrivals
        self.arrivals += 1
        live.sequences.append(self.residency.first_sequence(live))
        live.waits(live.arrived)
        self.waiting.add(live)
        self.shares.enter(live.tenant)
        self.deadlines.add(live)

    def admit(self, live: LiveRequest, now: float) -> None:
        """From waiting to running."""
        self.waiting.remove(live)
        live.admitted = self.admissions
        self.admissions += 1
        live.starts(now)
        live.turn, live.served = self.shares.turn(live.tenant), 0
        live.prepaid = max(0, live.prompt_tokens - live.leader.reached)
        self.shares.charge(live.tenant, live.prepaid)
        self.running.append(live)

    def put_back(self, live: LiveRequest) -> None:
        """From running to waiting; its pages are given back."""
        self._refund(live)
        self.residency.give_back(live)
        self.running.remove(live)
        live.resident_hint = 0
        live.waits(self.clock())
        self.waiting.add(live)

    def forget(self, live: LiveRequest) -> None:
        """It ends: it is nowhere, and holds nothing."""
        self._refund(live)
        self.residency.give_back(live)
        if live.phase is Phase.WAITING:
            self.waiting.remove(live)
        else:
            self.running.remove(live)
        self.shares.leave(live.tenant)

    def everyone(self) -> list[LiveRequest]:
        return [*self.waiting, *self.running]

    def computed(self, live: LiveRequest, tokens: int) -> None:
        """So many tokens were computed that its tenant did not have before."""
        unpaid = max(0, tokens - live.prepaid)
        live.prepaid -= tokens - unpaid
        live.served += tokens
        self.shares.charge(live.tenant, unpaid)
        self.shares.computed(tokens)

    def restored(self, live: LiveRequest, tokens: int) -> None:
        """So many need not be computed."""
        spared = min(live.prepaid, tokens)
        live.prepaid -= spared
        self.shares.charge(live.tenant, -spared)

    def _refund(self, live: LiveRequest) -> None:
        self.shares.charge(live.tenant, -live.prepaid)
        live.prepaid = 0
