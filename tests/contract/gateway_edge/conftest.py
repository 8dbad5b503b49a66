"""Cache service, billing, worker and gateway as processes, on the demo checkpoint, and the clients
that people use. For what has to happen just so: a gateway in this process, before scripted workers.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
from grpc_status import rpc_status

from gateway.key_file import KeyFile
from gateway.keys import ApiKey, new_key
from gateway.server import RunningGateway, start_gateway
from gateway.settings import ENV_PREFIX, GatewaySettings
from kvtier.cli.processes import LocalCluster, ServiceProcess, run_room_tool, start_service
from kvtier.errors import KvtierError, status_of
from kvtier.scopes import ScopePath
from kvtier.settings import load
from kvtier.v1 import inference_pb2 as pb
from kvtier.v1 import inference_pb2_grpc, usage_pb2, usage_pb2_grpc

MODEL = "demo"


class Stack:
    """What `kvtier up` starts, and a way to make keys and to ask the ledger."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        run_room_tool("worker.demo_checkpoint", str(directory / MODEL))
        self.cluster = LocalCluster(
            directory,
            directory / MODEL,
            worker_settings={"tenants": "acme,umbra", "threads": 1, "node": "node-1"},
            cache_settings={"host.capacity_bytes": "64MiB", "ssd.enabled": "false"},
        )
        self.cluster.start_cache()
        self.billing = self.cluster.start_billing().address
        self.worker = self.cluster.start_worker().address
        self.keys = KeyFile(directory / "gateway" / "keys.json")
        self.gateway = self.start_gateway()
        self.url = f"http://{self.gateway.address}/v1"

    def start_gateway(self, **settings: object) -> ServiceProcess:
        named = {key.replace("__", "."): value for key, value in settings.items()}
        base: dict[str, object] = {
            "listen": "127.0.0.1:0",
            "grpc_listen": "127.0.0.1:0",
            "workers": self.worker,
            "billing.address": self.billing,
            "keys_file": self.keys.path,
            "heartbeat_seconds": 1,
        }
        return start_service("gateway", base | named, self.directory / "logs" / "gateway.log")

    def key(self, organisation: str = "acme", project: str = "search", *classes: str) -> str:
        return self.key_and_text(organisation, project, *classes)[1]

    def key_and_text(
        self, organisation: str = "acme", project: str = "search", *classes: str
    ) -> tuple[ApiKey, str]:
        path = ScopePath(organisation, project)
        made = new_key("test", path, classes, int(time.time()))
        self.keys.change(lambda _: (made[0], None))
        return made

    def key_of_user(self, user: str) -> str:
        key, text = new_key("test", ScopePath("acme", "search", user), (), int(time.time()))
        self.keys.change(lambda _: (key, None))
        return text

    def client(self, key: str, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(api_key=key, base_url=self.url, **({"max_retries": 0} | options))

    def ledger(self, call: Callable[[Any], Any]) -> Any:
        with grpc.insecure_channel(self.billing) as channel:
            return call(usage_pb2_grpc.UsageServiceStub(channel))

    def usage_of(self, key_id: str, requests: int) -> usage_pb2.UsageRow:
        """Of one key, once the ledger has so many of its requests."""
        deadline = time.monotonic() + 60
        query = usage_pb2.GetUsageRequest(group_by=["key"])
        while True:
            rows = self.ledger(lambda stub: stub.GetUsage(query)).rows
            for row in rows:
                if row.group["key"] == key_id and row.request_count >= requests:
                    return row
            assert time.monotonic() < deadline, rows
            time.sleep(0.05)

    def event_of(self, reply_id: str) -> usage_pb2.UsageEvent:
        """The ledger's event of an answer, once it is there."""
        query = usage_pb2.FindUsageEventsRequest(id=reply_id.partition("-")[2])
        deadline = time.monotonic() + 60
        while True:
            try:
                return self.ledger(lambda stub: stub.FindUsageEvents(query)).entries[0].event
            except grpc.RpcError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def stop(self) -> None:
        self.gateway.stop()
        self.cluster.stop()


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    running = Stack(tmp_path_factory.mktemp("stack"))
    yield running
    running.stop()


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    """Of a key of its own."""
    with stack.client(stack.key()) as made:
        yield made


# A worker that does what a test tells it to, message by message.

Script = Callable[[pb.GenerateRequest, Any], AsyncIterator[pb.GenerateResponse]]


class ScriptedWorker(inference_pb2_grpc.InferenceServiceServicer):
    def __init__(self, script: Script, model: str) -> None:
        self.script = script
        self.model = model
        self.requests: list[pb.GenerateRequest] = []
        self.cancelled = 0
        self.address = ""

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[pb.GenerateResponse]:
        self.requests.append(request)
        try:
            async for response in self.script(request, context):
                yield response
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise

    async def GetModel(self, request: Any, context: Any) -> pb.GetModelResponse:
        return pb.GetModelResponse(model=self.model, context_tokens=100, block_tokens=64)


@asynccontextmanager
async def serving(worker: ScriptedWorker) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Serves it; gives what kills it."""
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(worker, server)
    worker.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()

    async def kill() -> None:
        await server.stop(None)

    yield kill
    await server.stop(None)


class Scripted:
    """A gateway in this process, and a key."""

    def __init__(self, directory: Path, stack: AsyncExitStack) -> None:
        self._parts = stack
        self._directory = directory
        keys = KeyFile(directory / "keys.json")
        key, self.key = new_key("test", ScopePath("acme", "search"), ("batch",), int(time.time()))
        keys.change(lambda _: (key, None))
        self.keys = keys
        self.gateway: RunningGateway

    async def worker(self, script: Script, model: str = MODEL) -> ScriptedWorker:
        made = ScriptedWorker(script, model)
        made.kill = await self._parts.enter_async_context(serving(made))  # type: ignore[attr-defined]
        return made

    async def start(self, *workers: ScriptedWorker, **settings: object) -> openai.AsyncOpenAI:
        said: dict[str, object] = {
            "listen": "127.0.0.1:0",
            "grpc_listen": "127.0.0.1:0",
            "security.development": "true",
            "keys_file": self.keys.path,
            "workers": ",".join(each.address for each in workers),
        }
        said |= {key.replace("__", "."): value for key, value in settings.items()}
        overrides = [f"{key}={value}" for key, value in said.items()]
        loaded, _ = load(GatewaySettings, env_prefix=f"TEST_{ENV_PREFIX}", overrides=overrides)
        self.gateway = await start_gateway(loaded)
        self._parts.push_async_callback(self.gateway.drain)
        url = f"http://{self.gateway.listen}/v1"
        client = openai.AsyncOpenAI(api_key=self.key, base_url=url, max_retries=0)
        self._parts.push_async_callback(client.close)
        return client

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.gateway.listen.rpartition(":")
        return host, int(port)


@pytest.fixture
async def scripted(tmp_path: Path) -> AsyncIterator[Scripted]:
    async with AsyncExitStack() as parts:
        yield Scripted(tmp_path, parts)


def refusing(
    reason: str,
    code: grpc.StatusCode,
    *before: pb.GenerateResponse,
    message: str = "the worker's sentence",
    **metadata: str,
) -> Script:
    """Says so much, and then no, as workers do."""

    class Refused(KvtierError):
        pass

    Refused.reason = reason

    async def script(request: pb.GenerateRequest, context: Any) -> Any:
        for response in before:
            yield response
        status = rpc_status.to_status(status_of(Refused(message, **metadata), code))
        context.set_trailing_metadata(status.trailing_metadata)
        await context.abort(status.code, status.details)

    return script


def started(name: str = "r1") -> pb.GenerateResponse:
    return pb.GenerateResponse(
        started=pb.GenerateStarted(request_id=name, model=MODEL, prompt_tokens=5)
    )


def delta(text: str) -> pb.GenerateResponse:
    return pb.GenerateResponse(delta=pb.GenerateDelta(text=text, token_ids=[1]))


def end() -> pb.GenerateResponse:
    return pb.GenerateResponse(sample_end=pb.SampleEnd(finish_reason=pb.FINISH_REASON_STOP))


def usage(name: str = "r1", tokens: int = 1) -> pb.GenerateResponse:
    counts = usage_pb2.TokenUsage(
        prompt_tokens=5, hit_tokens=2, miss_tokens=3, completion_tokens=tokens
    )
    return pb.GenerateResponse(usage=pb.GenerateUsage(request_id=name, tokens=counts))
