"""The workers behind the gateway: which are up, what each serves, and a call to one of them.

    generate -> choose -> Generate of a worker -> its messages
                  ^ it went away, and had said nothing: another one

Invariant: an attempt is repeated only while its worker has said nothing of it, and never at a
worker that was tried. From its first word on the request is in the worker's journal, and whether
the worker died (free) or lost sight of the gateway (charged) cannot be told from here: asking
another one could charge twice. Whether a worker is up is what its last answer said, asked every
`POLL_SECONDS` and after every call that found nobody. Event loop; owns the channels and what is
known of each.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc

from gateway.errors import GatewayError, WorkerError, WorkersUnavailableError
from gateway.router import Plan, Router
from gateway.status import is_for_callers
from gateway.worker_link import Worker
from gateway.worker_words import NonsenseError, Words
from kvtier.errors import WireError, read_error
from kvtier.serving import ShuttingDownError
from kvtier.v1 import inference_pb2 as pb

__all__ = ["Attempt", "Workers"]

log = logging.getLogger(__name__)

POLL_SECONDS = 2.0
ATTEMPTS_MAX = 3

_ELSEWHERE = frozenset({"QUEUE_FULL", "TOO_MANY_CALLS", "BUDGET_UNAVAILABLE"})
"""What may be otherwise at another worker."""


class Attempt:
    """One request on its way. `responses`, and `cancel` when nobody wants them any more."""

    def __init__(self, workers: "Workers", request: pb.GenerateRequest, seconds: float) -> None:
        self._workers = workers
        self._request = request
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._call: Any = None
        self._tried: list[str] = []
        self._cut = False
        self._answered = False
        """A worker said something of it: it is not repeated from then on."""
        self.cancelled = False

    def cancel(self) -> None:
        """Ends the worker's request, too. Idempotent; `responses` then ends without an error."""
        self.cancelled = True
        if self._call is not None:
            self._call.cancel()

    def cut(self) -> None:
        """The gateway ends; `responses` says so."""
        self._cut = True
        self.cancel()

    async def responses(self) -> AsyncIterator[pb.GenerateResponse]:
        """The worker's messages. One generator for all of them: each layer of these costs a token
        as much as the reading itself.

        Raises WorkerError, WorkersUnavailableError, ShuttingDownError.
        """
        router, model = self._workers.router, self._request.model
        self._workers.running.add(self)
        try:
            plan = await router.plan(self._request, self._workers.serving(model))
            while not self.cancelled:
                worker = self._workers.worker_for(model, plan, self._tried)
                self._tried.append(worker.address)
                sent = router.sent(plan, worker)
                worker.running_count += 1
                words = Words(self._request.sample_count)
                try:
                    call = self._call_of(worker)
                    while isinstance(response := await call.read(), pb.GenerateResponse):
                        self._answered = True
                        kind = words.heard(response)
                        if kind == "delta" and sent.queued_tokens:
                            router.first_token(sent)
                        elif kind == "usage":
                            router.learn(sent, response.usage)
                        yield response
                    words.ended()
                    break
                except NonsenseError as error:
                    self._judge(worker, WireError(grpc.StatusCode.INTERNAL, "", str(error), {}))
                except grpc.RpcError as error:
                    self._judge(worker, read_error(error))
                except asyncio.CancelledError:
                    if not self.cancelled:
                        raise
                finally:
                    worker.running_count -= 1
                    router.first_token(sent)
                    # Whoever stops reading leaves a call that nobody would end.
                    if self._call is not None:
                        self._call.cancel()
        finally:
            self._workers.running.discard(self)
        if self._cut:
            raise ShuttingDownError("the gateway ends; send again")

    def _call_of(self, worker: Worker) -> Any:
        left = max(0.0, self._deadline - asyncio.get_running_loop().time())
        self._call = worker.stub.Generate(self._request, timeout=left)
        return self._call

    def _judge(self, worker: Worker, wire: WireError) -> None:
        """Returns where another worker may take it. Raises WorkerError."""
        away = wire.code is grpc.StatusCode.UNAVAILABLE and wire.reason in ("", "SHUTTING_DOWN")
        if away:
            self._workers.went_away(worker, wire)
        elif not is_for_callers(wire) and wire.code is not grpc.StatusCode.DEADLINE_EXCEEDED:
            log.error(
                "a worker failed, or does not let the gateway in",
                extra={
                    "worker": worker.address,
                    "code": wire.code.name,
                    "reason": wire.reason,
                    "said": wire.message,
                },
            )
        elsewhere = away or wire.reason in _ELSEWHERE
        again = elsewhere and not self._answered and len(self._tried) < ATTEMPTS_MAX
        if not again or not self._workers.has_another(self._request.model, self._tried):
            raise WorkerError(wire)
        self._workers.retried()


class Workers:
    def __init__(
        self,
        addresses: Sequence[str],
        credentials: Callable[[str], grpc.ChannelCredentials | None],
        router: Router,
        on_retry: Callable[[], None],
    ) -> None:
        self.all = tuple(Worker(address, credentials(address)) for address in addresses)
        self.router = router
        self.retried = on_retry
        self.running: set[Attempt] = set()
        self._polls: set[asyncio.Task[None]] = set()

    @property
    def ready(self) -> bool:
        return any(worker.up for worker in self.all)

    def generate(self, request: pb.GenerateRequest, seconds: float) -> Attempt:
        """Nothing is sent before its `responses` are read."""
        return Attempt(self, request, seconds)

    def cut(self) -> None:
        """Ends everything that runs, here and at the workers."""
        for attempt in tuple(self.running):
            attempt.cut()

    def models(self) -> dict[str, pb.GetModelResponse]:
        """What can be asked for now, by name."""
        return {
            name: worker.model
            for worker in self.all
            if worker.model is not None
            for name in sorted(worker.names)
        }

    def serving(self, model: str) -> list[Worker]:
        """Those that are up and have it."""
        return [each for each in self.all if each.up and model in ("", *each.names)]

    def worker_for(self, model: str, plan: Plan, tried: Sequence[str]) -> Worker:
        """Raises WorkerError (MODEL_UNKNOWN), WorkersUnavailableError."""
        chosen = self.router.choose(plan, self.serving(model), tried)
        if chosen is not None:
            return chosen
        raise self.absent(model) if model else self.none_answers()

    def absent(self, model: str) -> GatewayError:
        """Why nobody takes a request of `model`: it is nowhere, or where it is is down."""
        known = any(model in worker.names for worker in self.all)
        return self.none_answers() if known or not self.ready else self.model_unknown()

    def none_answers(self) -> WorkersUnavailableError:
        return WorkersUnavailableError("no worker that could take it answers; send again")

    def model_unknown(self) -> WorkerError:
        """What a worker would say."""
        message = "there is no such model here; /v1/models lists those there are"
        return WorkerError(WireError(grpc.StatusCode.NOT_FOUND, "MODEL_UNKNOWN", message, {}))

    def has_another(self, model: str, tried: Sequence[str]) -> bool:
        return any(worker.address not in tried for worker in self.serving(model))

    def went_away(self, worker: Worker, wire: WireError) -> None:
        worker.lost(wire)
        self.router.lost(worker.address)
        task = asyncio.create_task(self._look(worker))
        self._polls.add(task)
        task.add_done_callback(self._polls.discard)

    async def poll(self) -> None:
        await asyncio.gather(*(self._look(worker) for worker in self.all))

    async def _look(self, worker: Worker) -> None:
        await worker.poll()
        if not worker.up:
            self.router.lost(worker.address)

    async def run(self) -> None:
        """Keeps what is known of the workers fresh, until cancelled."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            await self.poll()

    async def close(self) -> None:
        for task in tuple(self._polls):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for worker in self.all:
            await worker.close()
