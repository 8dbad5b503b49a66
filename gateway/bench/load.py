"""Clients at a time, for `kvtier bench gateway`: by HTTP through a gateway, by gRPC at a worker.

    python -m gateway.bench.load

Reads a `Load` as JSON from each line of standard input, runs it, and prints what came of it: the
time to each request's first token in milliseconds, and requests a second. The key comes in the
environment, as KVTIER_BENCH_API_KEY. Sockets are bare, so that little of what is measured is here.
"""

import asyncio
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import grpc

from gateway.bench.scripted_worker import MODEL
from kvtier.v1 import inference_pb2 as pb
from kvtier.v1 import inference_pb2_grpc

__all__ = ["KEY_VARIABLE", "Load", "main"]

KEY_VARIABLE = "KVTIER_BENCH_API_KEY"

DONE = b"data: [DONE]\n\n"
END = b"0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Load:
    way: str
    """"http" or "grpc"."""
    address: str
    clients: int
    requests: int
    """Of each client, one after the other."""
    tokens: int
    first_ms: int
    """Until the worker's first token; 0: at once."""
    pause_ms: int
    stream: bool

    @property
    def seed(self) -> int:
        return self.first_ms * 1000 + self.pause_ms

    def line(self) -> str:
        return json.dumps(asdict(self))


async def run(load: Load) -> dict[str, Any]:
    client = _http_client if load.way == "http" else _grpc_client
    waits: list[float] = []
    began = time.perf_counter()
    await asyncio.gather(*(client(load, number, waits) for number in range(load.clients)))
    seconds = time.perf_counter() - began
    return {"first_token_ms": waits, "requests_per_second": len(waits) / seconds}


async def _start(load: Load, number: int) -> None:
    """Spreads the clients over one request's time, or all would wait for each other's bursts."""
    each_ms = load.first_ms + load.pause_ms * (load.tokens - 1)
    await asyncio.sleep(each_ms / 1000 * number / load.clients)


async def _grpc_client(load: Load, number: int, waits: list[float]) -> None:
    request = pb.GenerateRequest(
        tenant_id="bench",
        model=MODEL,
        max_completion_tokens=load.tokens,
        sampling=pb.SamplingParameters(seed=load.seed),
    )
    request.chat.messages.add(role="user", content="hello")
    await _start(load, number)
    # A connection of its own, as clients have.
    async with grpc.aio.insecure_channel(
        load.address, options=(("grpc.use_local_subchannel_pool", 1),)
    ) as channel:
        await channel.channel_ready()
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        for _ in range(load.requests):
            asked, first = time.perf_counter(), 0.0
            async for response in stub.Generate(request):
                if not first and response.HasField("delta"):
                    first = time.perf_counter()
            waits.append((first - asked) * 1e3)


async def _http_client(load: Load, number: int, waits: list[float]) -> None:
    fields = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": load.tokens,
        "seed": load.seed,
        "stream": load.stream,
    }
    body = json.dumps(fields).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {load.address}\r\n"
        f"authorization: Bearer {os.environ[KEY_VARIABLE]}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    raw = head.encode() + body
    host, _, port = load.address.rpartition(":")
    await _start(load, number)
    reader, writer = await asyncio.open_connection(host, int(port))
    for _ in range(load.requests):
        asked = time.perf_counter()
        writer.write(raw)
        first = await (_streamed(reader) if load.stream else _whole(reader))
        waits.append((first - asked) * 1e3)
    writer.close()


async def _streamed(reader: asyncio.StreamReader) -> float:
    """When the first token came."""
    await _good_head(reader)
    await reader.readuntil(b"data: ")
    first = time.perf_counter()
    await reader.readuntil(DONE)
    await reader.readuntil(END)
    return first


async def _whole(reader: asyncio.StreamReader) -> float:
    """When the answer was there."""
    head = await _good_head(reader)
    length = next(
        int(line.split(b":")[1])
        for line in head.lower().split(b"\r\n")
        if line.startswith(b"content-length")
    )
    raw = await reader.readexactly(length)
    if b" word" not in raw:
        raise ValueError("an answer without a word")
    return time.perf_counter()


async def _good_head(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise ValueError(f"the gateway answered {head[:40]!r}")
    return head


def main() -> int:
    for line in sys.stdin:
        print(json.dumps(asyncio.run(run(Load(**json.loads(line))))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
