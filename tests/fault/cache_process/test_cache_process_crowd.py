"""Thousands of readers and writers at once, over the wire: each call is served or told why not.

A writer stores a chain in three calls and a reader reads one in three, all at once, on few
connections and in clear over loopback.
"""

import asyncio
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from hashlib import sha256
from typing import Any

import grpc

from kvtier.errors import read_error
from kvtier.keys import KEY_SCHEME_VERSION, BlockHash, pack_hashes, payload_checksum
from kvtier.v1 import cache_pb2, cache_pb2_grpc

CONNECTIONS = 16
WRITERS = READERS = 1500
BLOCK_BYTES = 4096
LASTING = 20
ANSWER_SECONDS_MAX = 120.0
"""Only that a deadlock fails instead of hanging: nothing here is timed."""

PATIENT = (
    "ssd.enabled=false",
    "limits.session_ttl_seconds=600",
    "limits.lease_ttl_seconds=600",
    "limits.reservation_ttl_seconds=600",
)
"""On a machine that is busy with more than this nothing ends by itself."""

TOO_MANY = ("RESOURCE_EXHAUSTED", "TOO_MANY_CALLS")


def chain(name: str) -> list[BlockHash]:
    return [BlockHash(sha256(f"{name}/{i}".encode()).digest()) for i in range(2)]


def payload(block_hash: BlockHash) -> bytes:
    return bytes(block_hash) * (BLOCK_BYTES // 32)


class Client:
    """One session on a connection of its own."""

    def __init__(self, address: str) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.aio.insecure_channel(address, options)
        self.stub: Any = cache_pb2_grpc.CacheServiceStub(self.channel)

    async def open(self) -> "Client":
        request = cache_pb2.OpenSessionRequest(
            key_scheme_version=KEY_SCHEME_VERSION,
            client_name="crowd",
            namespace_id=bytes(range(32)),
            block_tokens=64,
            block_bytes=BLOCK_BYTES,
            transport=cache_pb2.TRANSPORT_STREAM,
        )
        self.session_id = (await self.stub.OpenSession(request)).session_id
        return self

    async def store(self, name: str) -> None:
        named = {"session_id": self.session_id}
        hashes = chain(name)
        reserved = await self.stub.ReserveBlocks(
            cache_pb2.ReserveBlocksRequest(block_hashes=pack_hashes(hashes), **named)
        )
        wanted = list(reserved.missing_indexes)
        if not wanted:
            return
        named["reservation_id"] = reserved.reservation_id
        frames = [cache_pb2.StoreBlocksRequest(**named)]
        frames += [cache_pb2.StoreBlocksRequest(index=i, data=payload(hashes[i])) for i in wanted]
        await self.stub.StoreBlocks(iter(frames))
        sums = [payload_checksum(hashes[i], payload(hashes[i])) for i in wanted]
        await self.stub.CommitBlocks(cache_pb2.CommitBlocksRequest(checksums=sums, **named))

    async def hold(self, done: asyncio.Event) -> None:
        """Begins a store and ends it when `done` is set."""
        named = {"session_id": self.session_id}
        hashes = pack_hashes(chain(f"held by {self.session_id}"))
        request = cache_pb2.ReserveBlocksRequest(block_hashes=hashes, **named)
        named["reservation_id"] = (await self.stub.ReserveBlocks(request)).reservation_id

        async def frames() -> AsyncIterator[cache_pb2.StoreBlocksRequest]:
            yield cache_pb2.StoreBlocksRequest(**named)
            await done.wait()

        await self.stub.StoreBlocks(frames())

    async def read(self, name: str) -> None:
        named = {"session_id": self.session_id}
        hashes = chain(name)
        request = cache_pb2.AcquirePrefixRequest(block_hashes=pack_hashes(hashes), **named)
        async for event in self.stub.AcquirePrefix(request):
            if event.HasField("match"):
                named["lease_id"] = event.match.lease_id
            if event.HasField("ready"):
                wanted = cache_pb2.LoadBlocksRequest(
                    first_index=event.ready.first_index,
                    block_count=len(event.ready.checksums),
                    **named,
                )
                found: dict[int, bytes] = {}
                async for frame in self.stub.LoadBlocks(wanted):
                    found[frame.index] = found.get(frame.index, b"") + frame.data
                assert all(data == payload(hashes[i]) for i, data in found.items())
        if named.get("lease_id"):
            await self.stub.ReleaseLease(cache_pb2.ReleaseLeaseRequest(**named))


async def connected(address: str) -> list[Client]:
    """With what readers will look for."""
    clients = [await Client(address).open() for _ in range(CONNECTIONS)]
    for number in range(LASTING):
        await clients[0].store(f"lasting-{number}")
    return clients


async def crowd(clients: list[Client]) -> Counter[tuple[str, str]]:
    """How the calls of all ended that were not served."""
    refused: Counter[tuple[str, str]] = Counter()

    async def told(call: Awaitable[None]) -> None:
        try:
            await call
        except grpc.aio.AioRpcError as error:
            refused[error.code().name, read_error(error).reason] += 1

    jobs = [told(clients[n % CONNECTIONS].store(f"new-{n}")) for n in range(WRITERS)]
    jobs += [told(clients[n % CONNECTIONS].read(f"lasting-{n % LASTING}")) for n in range(READERS)]
    async with asyncio.timeout(ANSWER_SECONDS_MAX):
        await asyncio.gather(*jobs)
    return refused


async def test_a_crowd_is_served(start: Callable[..., Any]) -> None:
    """More calls arrive at once than gRPC by itself lets wait."""
    process = start(*PATIENT)
    clients = await connected(process.ready())
    assert await crowd(clients) == Counter()
    for client in clients:
        await client.channel.close()


async def test_a_crowd_before_a_full_service_is_told_so(start: Callable[..., Any]) -> None:
    """As many streams as the service serves are open, so that nobody else is served."""
    limit = f"limits.calls_max={CONNECTIONS}"
    process = start(*PATIENT, limit, "metrics_listen=127.0.0.1:0")
    clients = await connected(process.ready())
    done = asyncio.Event()
    held = [asyncio.ensure_future(client.hold(done)) for client in clients]
    page = f"http://{process.said['metrics_listen']}/metrics"
    async with asyncio.timeout(ANSWER_SECONDS_MAX):
        while await metric(page, "kvtier_cache_calls") < CONNECTIONS:
            await asyncio.sleep(0.05)
    assert await crowd(clients) == Counter({TOO_MANY: WRITERS + READERS})
    assert await metric(page, "kvtier_cache_refused_calls_total") == WRITERS + READERS
    done.set()
    await asyncio.gather(*held)
    assert await metric(page, "kvtier_cache_calls") == 0
    await clients[0].store("one more")
    for client in clients:
        await client.channel.close()
    process.popen.terminate()
    said = [line for line in process.end()[2].splitlines() if "TOO_MANY_CALLS" in line]
    assert 0 < len(said) < 10


async def metric(page: str, name: str) -> float:
    def fetch() -> str:
        with urllib.request.urlopen(page) as answer:
            return str(answer.read().decode())

    lines = (await asyncio.to_thread(fetch)).splitlines()
    return next(float(line.split()[1]) for line in lines if line.split()[0] == name)
