"""The engine's door: takes requests from any thread, computes them on its own.

    edge threads -- submit, cancel, stop_sample --> inbox --> step loop --> sinks

The inbox is bounded by the limit on waiting requests. Invariant: an accepted request ends with
exactly one `RequestEnded`, whatever happens to the cache, the model or this process's shutdown.
The step loop's state belongs to the engine's thread, or to the caller of `step` where the thread
was not started; never to both.
"""

import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence

from kvtier.keys import BlockChain, BlockHash
from kvtier.serving import ShuttingDownError
from worker.admission import pages_needed
from worker.attention.openmp import end_team
from worker.cache_lanes import CacheLanes
from worker.cache_port import CachePort
from worker.cache_traffic import CacheTraffic
from worker.device_copies import copies_for
from worker.engine_settings import EngineSettings
from worker.engine_state import EngineState
from worker.engine_stats import EngineStats
from worker.errors import EngineFailedError, PromptTooLongError, QueueFullError
from worker.kv_pages import KvPages
from worker.live_request import LiveRequest
from worker.model_loader import LoadedModel
from worker.page_pool import PagePool
from worker.prompt_account import PromptAccount
from worker.registered_memory import RegisteredMemory
from worker.requests import EndReason, EngineRequest, EventSink, RequestId
from worker.residency import Residency
from worker.step_loop import StepLoop

__all__ = ["Engine", "EngineSettings", "EngineStats"]

log = logging.getLogger(__name__)

BUSY_WAIT_SECONDS = 0.05
"""Between looks at deadlines while something is under way."""
IDLE_WAIT_SECONDS = 5.0
LOAD_THREADS = 2
JOIN_SECONDS = 30.0
DEVICE_PAGES_A_LENT_ONE = 16
"""On a device pages to lend take memory: at most a sixteenth of what the setting says, on top."""


class Engine:
    """Computes requests with paged attention. `start` it, or call `step` by hand in tests.

    `load_threads` = 0 runs calls to `cache` on the stepping thread, for repeatable tests.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        settings: EngineSettings,
        cache: CachePort | None,
        clock: Callable[[], float] = time.monotonic,
        load_threads: int = LOAD_THREADS,
        on_failure: Callable[[], object] = lambda: None,
        registered: RegisteredMemory | None = None,
    ) -> None:
        """`on_failure` is called on the engine's thread once it met its own bug and gave up;
        `registered`: what of host memory is registered with the model's device.

        Raises ValueError for `settings` that give no page, or whole units over a fixed grid.
        """
        if loaded.grid.fixed and settings.units.whole:
            raise ValueError("hits end on the grid of a deterministic model, not at units' ends")
        self._loaded = loaded
        self._settings = settings
        self._clock = clock
        self._on_failure = on_failure
        self._registered = registered
        self._news = threading.Condition()
        self._told = False
        self._inbox: list[Callable[[], None]] = []
        self._waiting_count = 0
        self._arriving_count = 0
        self._idle = True
        self._closed: type[ShuttingDownError] | type[EngineFailedError] | None = None
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._lanes = self._make_lanes(cache, load_threads)
        self._page_count = settings.pages_for(loaded.block_bytes)
        self._loop = self._make_loop()
        self._stats = self._loop.stats()

    def start(self) -> None:
        """Starts the engine's thread. Once.

        The caller's calls of torch, loading the model for one, are over: its team of torch's
        threads ends, since two teams on a processor's cores wait for each other's sleep.
        """
        assert self._thread is None, "the engine was started before"
        end_team()
        self._thread = threading.Thread(target=self._main, name="kvtier-engine", daemon=True)
        self._thread.start()

    def submit(self, request: EngineRequest, sink: EventSink) -> None:
        """Accepts `request`; from here on `sink` gets its events.

        Raises QueueFullError, PromptTooLongError when it passes the model's context or the pool can
        never hold it, AdapterUnknownError, ShuttingDownError, EngineFailedError, ValueError for
        counts below 1.
        """
        self._check(request)
        chain = BlockChain(self._loaded.namespace_of(request.adapter), request.scope)
        chain.extend(request.token_ids)
        account = PromptAccount(len(request.token_ids), self._loaded.block_tokens)
        live = LiveRequest(request, sink, chain, self._clock(), account, self._loaded.grid)
        with self._news:
            if self._closed is not None:
                raise self._closed("the worker takes no requests any more")
            if self._waiting_count >= self._settings.waiting_requests_max:
                raise QueueFullError(
                    f"{self._waiting_count} requests wait already; try again later",
                    waiting=self._waiting_count,
                )
            self._waiting_count += 1
            self._arriving_count += 1
            self._inbox.append(lambda: self._loop.accept(live))
            self._tell()

    def cancel(self, request_id: RequestId, reason: EndReason = EndReason.CANCELLED) -> None:
        """Ends a request with `reason`, CANCELLED or DEADLINE. Unknown ids are ignored."""
        self._post(lambda: self._loop.cancel(request_id, reason))

    def stop_sample(self, request_id: RequestId, sample_index: int) -> None:
        """Ends one sample as STOP, at the next step or when what it loads has come.

        Unknown ids, and samples without a token, are ignored.
        """
        self._post(lambda: self._loop.stop_sample(request_id, sample_index))

    def count_resident(self, chain: Sequence[BlockHash], told: Callable[[int], None]) -> None:
        """Tells, on the engine's thread between two steps, how many leading blocks of `chain` are
        in pages. Changes nothing. `told` must return at once and never raise.

        Raises ShuttingDownError, EngineFailedError.
        """
        with self._news:
            if self._closed is not None:
                raise self._closed("the worker takes no requests any more")
            self._inbox.append(lambda: told(self._loop.resident_count(chain)))
            self._tell()

    def stats(self) -> EngineStats:
        """The picture after the last step."""
        return self._stats

    def drain(self, timeout_seconds: float) -> bool:
        """Refuses new requests and waits for the accepted ones and their offers.

        True when all is done. Requires a started engine.
        """
        self._close(ShuttingDownError)
        with self._news:
            return self._news.wait_for(self._done, timeout_seconds)

    def stop(self) -> None:
        """Ends what is left with ERROR, then the threads. Idempotent; not from a sink."""
        self._close(ShuttingDownError)
        with self._news:
            self._stopping = True
            self._tell()
        if self._thread is not None:
            self._thread.join(JOIN_SECONDS)
        else:
            self._shut()
        if self._lanes is not None:
            self._lanes.stop()

    def step(self) -> bool:
        """Takes in what was asked and computes once; False when there was nothing to do."""
        asked = self._take_inbox()
        progress = self._loop.step()
        with self._news:
            self._waiting_count = self._loop.waiting_count + self._arriving_count
            self._idle = self._loop.idle
            self._stats = self._loop.stats()
            self._news.notify_all()
        return progress or asked

    def wait(self, timeout_seconds: float) -> None:
        """Returns when something was asked or a transfer is done, at the latest in time."""
        with self._news:
            self._news.wait_for(lambda: self._told, timeout_seconds)

    def check_integrity(self) -> None:
        """Raises AssertionError when pages, tree, tables or reservations do not add up."""
        self._loop.check_integrity()

    def _main(self) -> None:
        while not self._stopping:
            try:
                if not self.step():
                    self.wait(IDLE_WAIT_SECONDS if self._idle else BUSY_WAIT_SECONDS)
            except Exception:
                # Our own bug: no state can be trusted any more, but nobody may be left waiting.
                log.exception("the engine failed")
                self._close(EngineFailedError)
                self._abandon_all()
                self._on_failure()
                return
        self._shut()

    def _abandon_all(self) -> None:
        """Requests that came in with what broke the engine are told as well."""
        while True:
            try:
                if not self._take_inbox():
                    break
            except Exception:
                log.exception("a failed engine could not do what it was asked")
        self._loop.abandon_all("the engine failed")

    def _shut(self) -> None:
        self._take_inbox()
        self._loop.fail_all("the worker was stopped")
        with self._news:
            self._idle = True
            self._news.notify_all()

    def _take_inbox(self) -> bool:
        with self._news:
            inbox, self._inbox = self._inbox, []
            self._arriving_count = 0
            self._told = self._idle = False
        for place, act in enumerate(inbox, 1):
            try:
                act()
            except Exception:
                with self._news:
                    self._inbox[:0] = inbox[place:]
                raise
        return bool(inbox)

    def _make_lanes(self, cache: CachePort | None, load_threads: int) -> CacheLanes | None:
        if cache is None:
            return None
        return CacheLanes(
            cache,
            self._clock,
            self._transfer_done,
            load_threads,
            stores_waiting_max=self._settings.stores_waiting_max,
            loads_waiting_max=self._settings.running_requests_max,
        )

    def _make_loop(self) -> StepLoop:
        model, layout = self._loaded.model, self._loaded.layout
        # One page more for each that runs while a transfer is under way. And where a stuck call
        # keeps its pages, room for those: in host memory a page that nobody touches costs nothing.
        in_host_memory = model.device.type == "cpu"
        lent_max = self._settings.running_requests_max if self._lanes is not None else 0
        if not in_host_memory:
            lent_max = min(lent_max, self._page_count // DEVICE_PAGES_A_LENT_ONE)
        twice = 2 if in_host_memory and self._lanes is not None else 1
        count = self._page_count * twice + lent_max
        copies = functools.partial(copies_for, registered=self._registered)
        kv = KvPages(layout, count, model.device, touched_count=self._page_count, copies=copies)
        pool = PagePool(count, self._page_count)
        units, traffic = self._settings.units, None
        if self._lanes is not None:
            traffic = CacheTraffic(kv, pool, self._lanes, self._clock, units, lent_max)
        state = EngineState(
            self._settings,
            layout.block_tokens,
            Residency(kv, pool, self._clock, units),
            traffic,
            self._clock,
            self._loaded.grid,
        )
        return StepLoop(state, self._loaded.runner(kv))

    def _check(self, request: EngineRequest) -> None:
        counts = (len(request.token_ids), request.max_completion_tokens, request.sample_count)
        if min(counts) < 1:
            raise ValueError("prompt, completion and sample count must be at least 1")
        # Here too, though the edge looks first: past it KV is not what its name says.
        if counts[0] + counts[1] > self._loaded.context_tokens:
            raise PromptTooLongError(
                f"{counts[0]} prompt tokens and {counts[1]} completion tokens pass the model's "
                f"context of {self._loaded.context_tokens}",
                prompt_tokens=counts[0],
                completion_tokens=counts[1],
                context_tokens=self._loaded.context_tokens,
            )
        need = pages_needed(*counts, self._loaded.block_tokens)
        if need > self._page_count:
            raise PromptTooLongError(
                f"prompt and completions need {need} pages of {self._loaded.block_tokens} tokens, "
                f"this worker has {self._page_count}",
                needed_pages=need,
                page_count=self._page_count,
            )

    def _post(self, act: Callable[[], None]) -> None:
        with self._news:
            self._inbox.append(act)
            self._tell()

    def _close(self, error: type[ShuttingDownError] | type[EngineFailedError]) -> None:
        with self._news:
            self._closed = self._closed or error

    def _transfer_done(self) -> None:
        with self._news:
            self._tell()

    def _tell(self) -> None:
        self._told = True
        self._news.notify_all()

    def _done(self) -> bool:
        return self._closed is EngineFailedError or (not self._inbox and self._idle)
