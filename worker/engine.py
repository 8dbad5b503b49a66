"""The engine (signatures; the body follows)."""

import time
from collections.abc import Callable

from worker.cache_port import CachePort
from worker.engine_settings import EngineSettings
from worker.engine_stats import EngineStats
from worker.model_loader import LoadedModel
from worker.requests import EndReason, EngineRequest, EventSink, RequestId

__all__ = ["Engine", "EngineSettings", "EngineStats"]


class Engine:
    """Computes requests on one thread."""

    def __init__(
        self,
        loaded: LoadedModel,
        settings: EngineSettings,
        cache: CachePort | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        raise NotImplementedError

    def start(self) -> None:
        """Starts the engine's thread. Once."""
        raise NotImplementedError

    def submit(self, request: EngineRequest, sink: EventSink) -> None:
        """Raises QueueFullError; PromptTooLongError when it can never fit; ShuttingDownError."""
        raise NotImplementedError

    def cancel(self, request_id: RequestId, reason: EndReason = EndReason.CANCELLED) -> None:
        """Ends a request; unknown ids are ignored. `reason`: CANCELLED or DEADLINE."""
        raise NotImplementedError

    def stop_sample(self, request_id: RequestId, sample_index: int) -> None:
        """Ends one sample as STOP; unknown ids are ignored."""
        raise NotImplementedError

    def stats(self) -> EngineStats:
        """The picture after the last step."""
        raise NotImplementedError

    def drain(self, timeout_seconds: float) -> bool:
        """Refuses new requests and waits for the accepted ones; True when all have ended."""
        raise NotImplementedError

    def stop(self) -> None:
        """Ends what is left (ERROR) and joins the thread. Idempotent."""
        raise NotImplementedError
