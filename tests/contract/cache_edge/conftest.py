"""A real cache service on a loop of its own thread, real SSD, real arena; clients beside it."""

import asyncio
import contextlib
import itertools
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from cache_service.bulk.transfers import Transfers
from cache_service.server import CacheServer
from cache_service.settings import CacheSettings
from kvtier.errors import WireError, read_error
from kvtier.keys import (
    KEY_SCHEME_VERSION,
    BlockHash,
    NamespaceId,
    pack_hashes,
    payload_checksum,
)
from kvtier.v1 import bulk_pb2, bulk_pb2_grpc, cache_pb2_grpc
from kvtier.v1 import cache_pb2 as pb
from tests.page_kinds import ListClient
from worker.arena_handover import take_arena
from worker.bulk_lane import BulkLanes, Loaded
from worker.transfer import ArenaMap, page_checksum

Acquired = pb.AcquirePrefixResponse | pb.AcquireResidentResponse

BLOCK_BYTES = 1024 * 1024 + 4000
"""More than a frame, and not whole pages."""

TRANSPORTS = ("shared_memory", "bulk", "stream")

Page = np.ndarray[Any, np.dtype[np.uint8]]


class Service:
    """A started service; `stop` drains it."""

    def __init__(self, settings: CacheSettings) -> None:
        self._started = threading.Event()
        self._problem: BaseException | None = None
        self.settings = settings
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._started.wait(60)
        if self._problem is not None:
            self._thread.join()
            raise self._problem
        channel = grpc.insecure_channel(self.address)
        self.channel = channel
        self.stub = cache_pb2_grpc.CacheServiceStub(channel)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self.server = CacheServer(self.settings)
        try:
            await self.server.start()
        except BaseException as error:
            self._problem = error
            self._started.set()
            return
        self.address = self.server.listen
        self._started.set()
        await self._stopping.wait()
        await self.server.stop()

    def end(self) -> None:
        """Drains, with this side's calls still open."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(60)

    def stop(self) -> None:
        """Drains. Idempotent."""
        if self._thread.is_alive():
            self.channel.close()
            self.end()
        assert not self._thread.is_alive()

    def stats(self) -> pb.GetStatsResponse:
        return self.stub.GetStats(pb.GetStatsRequest(), timeout=5)

    def bulk_side(self) -> Transfers:
        """The core's side of the bulk lane; look, and touch nothing."""
        assert self.server.cache is not None
        return self.server.cache.bulk

    def check_integrity(self) -> None:
        """On the loop, as the core wants it."""
        done: Future[None] = Future()

        def check() -> None:
            try:
                assert self.server.cache is not None
                self.server.cache.check_integrity()
                done.set_result(None)
            except BaseException as error:
                done.set_exception(error)

        self._loop.call_soon_threadsafe(check)
        done.result(10)

    def until(self, holds: Callable[[pb.GetStatsResponse], bool]) -> pb.GetStatsResponse:
        """Polls the stats until `holds`; fails after ten seconds."""
        waiting = threading.Event()
        for _ in range(500):
            stats = self.stats()
            if holds(stats):
                return stats
            waiting.wait(0.02)
        raise AssertionError(f"did not come to hold: {stats}")


@pytest.fixture(scope="session")
def short_directory() -> Iterator[Callable[[], Path]]:
    """Fresh directories with names short enough for Unix sockets."""
    made: list[Path] = []

    def make() -> Path:
        made.append(Path(tempfile.mkdtemp(prefix="kvt-")))
        return made[-1]

    yield make
    for path in made:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def make_service(short_directory: Callable[[], Path]) -> Iterator[Callable[..., Service]]:
    """`make_service(limits={...}, ...)` starts a service; all end with the module."""
    services: list[Service] = []

    def make(directory: Path | None = None, **changes: Any) -> Service:
        values: dict[str, Any] = {
            "listen": "127.0.0.1:0",
            "security": {"development": True},
            "data_directory": directory or short_directory(),
            "host": {"capacity_bytes": "64MiB"},
            "ssd": {"capacity_bytes": "64MiB", "segment_bytes": "16MiB"},
            "bulk": {"listen": "127.0.0.1:0"},
        }
        services.append(Service(CacheSettings.model_validate(values | changes)))
        return services[-1]

    yield make
    for service in services:
        service.stop()


@pytest.fixture(scope="module")
def service(make_service: Callable[..., Service]) -> Service:
    return make_service()


@pytest.fixture
def namespace() -> NamespaceId:
    return NamespaceId(bytes(range(32)))


_chains = itertools.count(1)


def fresh_chain(count: int) -> list[BlockHash]:
    """Hashes no other test uses."""
    number = next(_chains)
    return [
        BlockHash(number.to_bytes(8, "big") + i.to_bytes(8, "big") + bytes(16))
        for i in range(count)
    ]


def filled_pages(chain: list[BlockHash], block_bytes: int = BLOCK_BYTES) -> list[Page]:
    """Payloads that follow from the hash, so that anybody can check them."""
    return [
        np.random.default_rng(list(block_hash)).integers(0, 256, block_bytes, dtype=np.uint8)
        for block_hash in chain
    ]


def empty_pages(count: int, block_bytes: int = BLOCK_BYTES) -> list[Page]:
    return [np.zeros(block_bytes, dtype=np.uint8) for _ in range(count)]


@pytest.fixture
def make_client(namespace: NamespaceId) -> Iterator[Callable[..., ListClient]]:
    clients: list[ListClient] = []

    def make(address: str, transport: str = "auto", **options: Any) -> ListClient:
        clients.append(
            ListClient(
                address,
                options.pop("namespace_id", namespace),
                options.pop("block_bytes", BLOCK_BYTES),
                64,
                "test",
                transport,  # type: ignore[arg-type]
                **options,
            )
        )
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@dataclass
class Peer:
    """A session spoken to by hand, RPC by RPC, on either transport."""

    service: Service
    opened: pb.OpenSessionResponse
    arena: ArenaMap | None
    connection: Any
    lanes: BulkLanes | None = None
    chains: dict[str, list[BlockHash]] = field(default_factory=dict)
    """Of leases, by id."""

    @property
    def id(self) -> str:
        return self.opened.session_id

    def reserve(
        self, chain: list[BlockHash], request_id: str = "", **fields: Any
    ) -> pb.ReserveBlocksResponse:
        return self.service.stub.ReserveBlocks(
            pb.ReserveBlocksRequest(
                session_id=self.id, request_id=request_id, block_hashes=pack_hashes(chain), **fields
            ),
            timeout=10,
        )

    def write(
        self,
        reserved: pb.ReserveBlocksResponse,
        chain: list[BlockHash],
        pages: list[Page] | None = None,
    ) -> list[int]:
        """Moves payloads, the right ones unless others are given; returns their checksums."""
        pages = pages or filled_pages(chain)
        missing = list(reserved.missing_indexes)
        if self.lanes is not None:
            blocks = [(index, pages[index].data) for index in missing]
            until, sent = time.monotonic() + 10, [0]
            reservation_id = reserved.reservation_id
            self.lanes.store(reservation_id, blocks, until, lambda: None, sent.append)
            assert sent == sorted(sent)
            assert sent[-1] == len(missing)
            return [page_checksum(chain[index], pages[index]) for index in missing]
        if self.arena is not None:
            for index, offset in zip(missing, reserved.slab_offsets, strict=True):
                self.arena.slab(offset)[:] = pages[index]
        else:
            self.send(reserved, {index: pages[index] for index in missing})
        return [payload_checksum(chain[index], pages[index].tobytes()) for index in missing]

    def send(self, reserved: pb.ReserveBlocksResponse, pages: dict[int, Page]) -> int:
        def frames() -> Iterator[pb.StoreBlocksRequest]:
            yield pb.StoreBlocksRequest(session_id=self.id, reservation_id=reserved.reservation_id)
            for index, page in pages.items():
                for offset in range(0, len(page), 1 << 20):
                    yield pb.StoreBlocksRequest(
                        index=index, offset=offset, data=page[offset : offset + (1 << 20)].tobytes()
                    )

        return self.service.stub.StoreBlocks(frames(), timeout=10).stored_count

    def commit(self, reserved: pb.ReserveBlocksResponse, checksums: list[int]) -> int:
        return self.service.stub.CommitBlocks(
            pb.CommitBlocksRequest(
                session_id=self.id, reservation_id=reserved.reservation_id, checksums=checksums
            ),
            timeout=10,
        ).committed_count

    def store(self, chain: list[BlockHash]) -> pb.ReserveBlocksResponse:
        """The whole way, with payloads that follow from the hashes."""
        reserved = self.reserve(chain)
        assert self.commit(reserved, self.write(reserved, chain)) == len(chain)
        return reserved

    def acquire(self, chain: list[BlockHash], **fields: Any) -> list[pb.AcquirePrefixResponse]:
        events = list(
            self.service.stub.AcquirePrefix(
                pb.AcquirePrefixRequest(
                    session_id=self.id, block_hashes=pack_hashes(chain), **fields
                ),
                timeout=10,
            )
        )
        self.chains[events[0].match.lease_id] = chain
        return events

    def acquire_resident(self, chain: list[BlockHash], **fields: Any) -> pb.AcquireResidentResponse:
        answer = self.service.stub.AcquireResident(
            pb.AcquireResidentRequest(
                session_id=self.id, block_hashes=pack_hashes(chain), **fields
            ),
            timeout=10,
        )
        self.chains[answer.match.lease_id] = chain
        return answer

    def lookup(self, chain: list[BlockHash]) -> pb.LookupPrefixResponse:
        return self.service.stub.LookupPrefix(
            pb.LookupPrefixRequest(session_id=self.id, block_hashes=pack_hashes(chain)), timeout=10
        )

    def read(self, events: Sequence[Acquired]) -> list[bytes]:
        """Payloads of all ready blocks of an acquire."""
        payloads: list[bytes] = []
        for event in events:
            if not event.HasField("ready"):
                continue
            if self.arena is not None:
                payloads += [self.arena.slab(o).tobytes() for o in event.ready.slab_offsets]
            elif self.lanes is not None:
                payloads += self.load_bulk(self.lanes, events[0].match.lease_id, event.ready)
            else:
                count = len(event.ready.checksums)
                frames = self.load(events[0].match.lease_id, event.ready.first_index, count)
                blocks = [b""] * count
                for frame in frames:
                    assert frame.offset == len(blocks[frame.index - event.ready.first_index])
                    assert 0 < len(frame.data) <= 1 << 20
                    blocks[frame.index - event.ready.first_index] += frame.data
                payloads += blocks
        return payloads

    def load_bulk(self, lanes: BulkLanes, lease_id: str, ready: pb.ReadyRange) -> list[bytes]:
        """What came, checked against no hash but the service's."""
        pages, loaded = empty_pages(len(ready.checksums)), Loaded()
        hashes = self.chains[lease_id][ready.first_index :]
        blocks = list(zip(hashes, pages, ready.checksums, strict=False))
        lanes.load(lease_id, ready.first_index, blocks, time.monotonic() + 10, loaded)
        assert loaded.count == len(pages)
        return [page.tobytes() for page in pages]

    def load(self, lease_id: str, first: int, count: int) -> list[pb.LoadBlocksResponse]:
        return list(
            self.service.stub.LoadBlocks(
                pb.LoadBlocksRequest(
                    session_id=self.id, lease_id=lease_id, first_index=first, block_count=count
                ),
                timeout=10,
            )
        )

    def release(self, lease_id: str, corrupt: bytes = b"") -> None:
        self.service.stub.ReleaseLease(
            pb.ReleaseLeaseRequest(
                session_id=self.id, lease_id=lease_id, corrupt_block_hashes=corrupt
            ),
            timeout=10,
        )


def open_request(transport: str, /, **changes: Any) -> pb.OpenSessionRequest:
    fields: dict[str, Any] = {
        "key_scheme_version": KEY_SCHEME_VERSION,
        "client_name": "test",
        "namespace_id": bytes(range(32)),
        "block_tokens": 64,
        "block_bytes": BLOCK_BYTES,
        "transport": pb.Transport.Value(f"TRANSPORT_{transport.upper()}"),
    }
    return pb.OpenSessionRequest(**(fields | changes))


def bulk_lanes(service: Service, session_id: str) -> BulkLanes:
    """A session's bulk lane, as the worker's client uses it."""
    stub = bulk_pb2_grpc.BulkServiceStub(service.channel)
    request = bulk_pb2.OpenBulkLaneRequest(session_id=session_id)
    return BulkLanes(lambda s: stub.OpenBulkLane(request, timeout=s), "127.0.0.1", None, False)


@pytest.fixture
def open_peer() -> Iterator[Callable[..., Peer]]:
    peers: list[Peer] = []

    def make(service: Service, transport: str, **changes: Any) -> Peer:
        opened = service.stub.OpenSession(open_request(transport, **changes), timeout=10)
        arena, connection, lanes = None, None, None
        if transport == "shared_memory":
            handover = opened.arena
            arena, connection = take_arena(
                handover.socket_path, handover.ticket, handover.arena_bytes, BLOCK_BYTES, 5
            )
        if transport == "bulk":
            lanes = bulk_lanes(service, opened.session_id)
        peers.append(Peer(service, opened, arena, connection, lanes))
        return peers[-1]

    yield make
    for peer in peers:
        if peer.lanes is not None:
            peer.lanes.close()
        if peer.connection is not None:
            peer.connection.close()
        else:
            request = pb.CloseSessionRequest(session_id=peer.id)
            try:
                peer.service.stub.CloseSession(request, timeout=5)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise  # a test may have ended the service, and no more


@pytest.fixture
def cutting_proxy() -> Iterator[Callable[[str, list[int]], int]]:
    """`cutting_proxy(address, limits)`: a port that passes so many bytes of its nth connection,
    both ways together, and then cuts it; the last limit is for all that follow."""
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def serve(listener: socket.socket, address: str, limits: list[int]) -> None:
        host, _, port = address.rpartition(":")
        for number in itertools.count():
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.create_connection((host, int(port)))
            left = [limits[min(number, len(limits) - 1)]]
            for source, target in ((near, far), (far, near)):
                threads.append(threading.Thread(target=pump, args=(source, target, left)))
                threads[-1].start()

    def pump(source: socket.socket, target: socket.socket, left: list[int]) -> None:
        with contextlib.suppress(OSError):
            while left[0] > 0 and (piece := source.recv(65536)):
                left[0] -= len(piece)
                target.sendall(piece)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        source.close()

    def make(address: str, limits: list[int]) -> int:
        listeners.append(socket.create_server(("127.0.0.1", 0)))
        threads.append(threading.Thread(target=serve, args=(listeners[-1], address, limits)))
        threads[-1].start()
        port: int = listeners[-1].getsockname()[1]
        return port

    yield make
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.fixture(params=TRANSPORTS)
def peer(request: pytest.FixtureRequest, service: Service, open_peer: Callable[..., Peer]) -> Peer:
    return open_peer(service, request.param)


def refusal(call: Callable[[], Any]) -> WireError:
    """The typed error that `call` ends with."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return read_error(caught.value)


@pytest.fixture(scope="session")
def tools() -> Any:
    """The helpers above, for tests that import nothing from here."""
    import types

    return types.SimpleNamespace(
        block_bytes=BLOCK_BYTES,
        fresh_chain=fresh_chain,
        filled_pages=filled_pages,
        empty_pages=empty_pages,
        open_request=open_request,
        refusal=refusal,
    )
