"""A worker and a till that say what a test tells them to, and gates, over real gRPC."""

from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from kvtier.v1 import inference_pb2 as pb
from kvtier.v1 import inference_pb2_grpc, usage_pb2, usage_pb2_grpc
from tests.gate import SERVICE, Gate, StartGate
from tests.pki import Pki

END_SECONDS = 1_755_000_000


@dataclass
class FakeWorker(inference_pb2_grpc.InferenceServiceServicer):
    """Answers with `pieces`, or refuses with `refusal`."""

    address: str = ""
    pieces: tuple[str, ...] = ("Hel", "lo")
    refusal: tuple[grpc.StatusCode, str] | None = None
    failure: tuple[grpc.StatusCode, str] | None = None
    """After the usage, of which nothing is charged."""
    logprobs: tuple[pb.TokenLogprob, ...] = ()
    requests: list[pb.GenerateRequest] = field(default_factory=list)

    def Generate(self, request: Any, context: Any) -> Iterator[pb.GenerateResponse]:
        self.requests.append(request)
        if self.refusal is not None:
            context.abort(*self.refusal)
        yield pb.GenerateResponse(started=pb.GenerateStarted(request_id="r-1", model="demo"))
        for piece in self.pieces:
            delta = pb.GenerateDelta(text=piece, token_ids=[7], logprobs=self.logprobs)
            yield pb.GenerateResponse(delta=delta)
        end = pb.SampleEnd(finish_reason=pb.FINISH_REASON_LENGTH)
        yield pb.GenerateResponse(sample_end=end)
        usage = pb.GenerateUsage(
            request_id="r-1",
            tokens=usage_pb2.TokenUsage(
                prompt_tokens=4_537,
                hit_tokens=4_480,
                hit_tokens_by_tier=usage_pb2.HitTokensByTier(gpu=4_416, ssd=64),
                miss_tokens=57,
                completion_tokens=2,
            ),
        )
        usage.ttft.FromMilliseconds(93)
        usage.end_time.FromSeconds(END_SECONDS)
        usage.computed.CopyFrom(usage.tokens)
        if self.failure is not None:
            usage.tokens.Clear()
        yield pb.GenerateResponse(usage=usage)
        if self.failure is not None:
            context.abort(*self.failure)


@dataclass
class FakeTill(usage_pb2_grpc.UsageServiceServicer):
    """Rates everything the same."""

    address: str = ""
    answer: usage_pb2.RateUsageResponse = field(
        default_factory=lambda: usage_pb2.RateUsageResponse(
            amount="0.000509",
            saved_amount="0.004032",
            currency_code="CNY",
            price_book_version="v1",
        )
    )
    requests: list[usage_pb2.RateUsageRequest] = field(default_factory=list)

    def RateUsage(self, request: Any, context: Any) -> usage_pb2.RateUsageResponse:
        self.requests.append(request)
        return self.answer


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[grpc.Server], None]], str]]:
    """Serves what a function registers; returns the address."""
    with ExitStack() as stack:

        def start(register: Callable[[grpc.Server], None]) -> str:
            server = grpc.server(stack.enter_context(ThreadPoolExecutor(4)))
            register(server)
            port = server.add_insecure_port("127.0.0.1:0")
            server.start()
            stack.callback(lambda: server.stop(0).wait())
            return f"127.0.0.1:{port}"

        yield start


@pytest.fixture
def worker(serve: Callable[..., str]) -> FakeWorker:
    fake = FakeWorker()
    fake.address = serve(
        lambda s: inference_pb2_grpc.add_InferenceServiceServicer_to_server(fake, s)
    )
    return fake


@pytest.fixture
def till(serve: Callable[..., str]) -> FakeTill:
    fake = FakeTill()
    fake.address = serve(lambda s: usage_pb2_grpc.add_UsageServiceServicer_to_server(fake, s))
    return fake


@pytest.fixture
async def start_gate(tmp_path: Path) -> AsyncIterator[StartGate]:
    """Starts a gate with these limits."""
    started: list[Gate] = []

    async def make(*args: Any) -> Gate:
        made = Gate(Pki(tmp_path / "tls"), *args)
        (made.address,) = await made.server.start(["127.0.0.1:0"], [SERVICE])
        started.append(made)
        return made

    yield make
    for made in started:
        made.servicer.go.set()
        await made.server.drain(0)


@pytest.fixture
async def gate(start_gate: StartGate) -> Gate:
    return await start_gate()
