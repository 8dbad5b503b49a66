"""One open session with a cache service: its channel, its terms, its arena.

A session is opened whole or not at all, used by any number of threads at once, and retired once:
channel and arena connection close when the last user has left, because the service frees a
session's slabs when its connection closes, and nobody may still be writing them then.

A lock guards the user count and the set of live lease and reservation ids; any thread.
"""

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import grpc

from kvtier.channels import open_channel
from kvtier.errors import read_error
from kvtier.keys import KEY_SCHEME_VERSION, NamespaceId
from kvtier.v1 import bulk_pb2, bulk_pb2_grpc, cache_pb2, cache_pb2_grpc
from worker.arena_handover import take_arena
from worker.bulk_lane import BulkLanes, LaneStoppedError
from worker.lease_returns import LeaseReturns
from worker.session_line import LineStub, SessionLine
from worker.transfer import ArenaMap, NonsenseError, TimeUpError, answered

__all__ = ["RELEASE_SECONDS_MAX", "CacheSession", "SessionTerms", "TransportChoice", "open_session"]

TransportChoice = Literal["auto", "shared_memory", "bulk", "stream"]
"""auto: the first of the others that can be had, in this order."""

MESSAGE_BYTES_MAX = 16 * 1024 * 1024

RELEASE_SECONDS_MAX = 5.0

RENEW_SECONDS_MIN = 0.05
RENEW_SECONDS_MAX = 3600.0
"""Whatever lifetimes the service names, neither a storm of renewals nor a wait without end."""

LANE_FAILURES = (NonsenseError, LaneStoppedError, TimeUpError)

CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    # A session has its own connection: a new session tries at once, whatever the last one saw.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
)


@dataclass(frozen=True, slots=True)
class SessionTerms:
    """What every session of this client asks for."""

    address: str
    """"host:port" or "unix:PATH"."""
    namespace_id: NamespaceId
    block_bytes: int
    block_tokens: int
    client_name: str
    transport: TransportChoice
    credentials: grpc.ChannelCredentials | None = None
    """None: in clear."""
    lane_tls: ssl.SSLContext | None = None
    """The same for the bulk lane."""
    model: str = ""
    """As usage events call it: what is kept stored is charged under it."""


class CacheSession:
    """An open session, with an arena, with lanes, or on the stream transport with neither."""

    def __init__(
        self,
        stub: cache_pb2_grpc.CacheServiceStub,
        channel: grpc.Channel,
        opened: cache_pb2.OpenSessionResponse,
        arena: ArenaMap | None,
        connection: socket.socket | None,
        lanes: BulkLanes | None = None,
        takes_calls: bool = False,
    ) -> None:
        """`connection`: to the arena's socket, or a line; `takes_calls`: over it."""
        self._line: SessionLine | None = None
        if connection is not None and takes_calls:
            self._line = SessionLine(connection)
            stub = LineStub(stub, self._line).as_stub()
        self.stub = stub
        self.id = opened.session_id
        self.instance_id = opened.service_instance_id
        self.arena = arena
        self.lanes = lanes
        self.passed_over: dict[str, str] = {}
        """Transports that "auto" would rather have had -> why not. Not changed once in use."""
        self.max_blocks_per_call = opened.max_blocks_per_call
        self.renew_seconds = min(
            max(RENEW_SECONDS_MIN, _shortest_ttl(opened) / 3), RENEW_SECONDS_MAX
        )
        """How often to renew so that nothing of this session expires."""
        self._channel = channel
        self._connection = connection
        self._lock = threading.Lock()
        self._user_count = 0
        self._retired = False
        self._closed = False
        self._leases: set[str] = set()
        self._reservations: set[str] = set()
        self._unawaited: set[Any] = set()
        self.lease_returns = LeaseReturns(self._return_leases)

    @property
    def retired(self) -> bool:
        return self._retired

    def enter(self) -> bool:
        """Keeps channel and arena alive until `leave`; False when they are gone already."""
        with self._lock:
            if self._closed:
                return False
            self._user_count += 1
            return True

    def leave(self) -> None:
        """REQUIRES: one `enter` that was True."""
        with self._lock:
            self._user_count -= 1
        self._close_if_done()

    def retire(self) -> None:
        """No new call should use this session; it closes after its last user. Idempotent."""
        with self._lock:
            self._retired = True
        self._close_if_done()

    @contextlib.contextmanager
    def renewing(self, *, lease: str = "", reservation: str = "") -> Iterator[None]:
        """The ids are renewed with the session while the body runs."""
        with self._lock:
            self._leases.add(lease)
            self._reservations.add(reservation)
        try:
            yield
        finally:
            with self._lock:
                self._leases.discard(lease)
                self._reservations.discard(reservation)

    def renew(self, timeout_seconds: float) -> None:
        """Extends the session and what it holds. Raises grpc.RpcError."""
        with self._lock:
            leases = sorted(self._leases - {""})
            reservations = sorted(self._reservations - {""})
        request = cache_pb2.RenewLeasesRequest(
            session_id=self.id, lease_ids=leases, reservation_ids=reservations
        )
        self.stub.RenewLeases(request, timeout=timeout_seconds)

    def _return_leases(self, lease_ids: Sequence[str]) -> None:
        # Nobody waits for the answer: what is lost ends at the lease's deadline.
        request = cache_pb2.ReleaseLeaseRequest(session_id=self.id, returned_lease_ids=lease_ids)
        self.send_off(self.stub.ReleaseLease.future(request, timeout=RELEASE_SECONDS_MAX))

    def send_off(self, future: "grpc.Future[Any]") -> None:
        """Lets a call run to its end with nobody waiting for the answer.

        A call whose last reference goes is cancelled by gRPC, so the session holds it. An answer
        that never comes ends at the call's own deadline.
        """
        with self._lock:
            self._unawaited.add(future)

        def forget(done: "grpc.Future[Any]") -> None:
            with self._lock:
                self._unawaited.discard(done)

        future.add_done_callback(forget)

    def say_goodbye(self, timeout_seconds: float) -> None:
        """Tells the service; where that fails the session's deadline does it."""
        with contextlib.suppress(grpc.RpcError, ValueError):
            self.stub.CloseSession(
                cache_pb2.CloseSessionRequest(session_id=self.id), timeout=timeout_seconds
            )

    def _close_if_done(self) -> None:
        with self._lock:
            if self._closed or not self._retired or self._user_count:
                return
            self._closed = True
        self.lease_returns.close()
        if self._line is not None:
            self._line.close()
        elif self._connection is not None:
            self._connection.close()
        if self.lanes is not None:
            self.lanes.close()
        self._channel.close()


def open_session(
    terms: SessionTerms, timeout_seconds: float, previous: CacheSession | None = None
) -> CacheSession:
    """Connects and opens. Raises grpc.RpcError, NonsenseError, LaneStoppedError, OSError.

    "auto" takes shared memory where the hand-over works: the ticket proves that the socket belongs
    to the service at `address`, so a shared volume between containers counts as the same host.
    Else it takes a bulk lane where one is offered and can be reached; what it passed over it says.
    A service that was not restarted since `previous` keeps its arena mapped.
    """
    channel = open_channel(terms.address, terms.credentials, CHANNEL_OPTIONS)
    stub = cache_pb2_grpc.CacheServiceStub(channel)
    try:
        passed_over: dict[str, str] = {}
        session = None
        if terms.transport in ("auto", "shared_memory"):
            session = _open_shared(terms, stub, channel, timeout_seconds, previous, passed_over)
        if session is None and terms.transport in ("auto", "bulk"):
            session = _open_bulk(terms, stub, channel, timeout_seconds, passed_over)
        if session is None:
            opened = _open(terms, stub, cache_pb2.TRANSPORT_STREAM, timeout_seconds)
            session = CacheSession(stub, channel, opened, None, None)
        session.passed_over = passed_over
        return session
    except (ValueError, OverflowError) as error:
        channel.close()
        raise NonsenseError(f"the service's terms make no sense: {error}") from None
    except BaseException:
        channel.close()
        raise


def _open_shared(
    terms: SessionTerms,
    stub: cache_pb2_grpc.CacheServiceStub,
    channel: grpc.Channel,
    timeout_seconds: float,
    previous: CacheSession | None,
    passed_over: dict[str, str],
) -> CacheSession | None:
    opened = _open(terms, stub, cache_pb2.TRANSPORT_SHARED_MEMORY, timeout_seconds)
    try:
        arena, connection = take_arena(
            opened.arena.socket_path,
            opened.arena.ticket,
            opened.arena.arena_bytes,
            terms.block_bytes,
            timeout_seconds,
        )
    except (OSError, ValueError, NonsenseError) as error:
        stub.CloseSession(
            cache_pb2.CloseSessionRequest(session_id=opened.session_id), timeout=timeout_seconds
        )
        if terms.transport != "auto":
            raise
        passed_over["shared_memory"] = str(error)[:200]
        return None
    if (
        previous is not None
        and previous.arena
        and previous.instance_id == (opened.service_instance_id)
    ):
        arena = previous.arena
    takes_calls = opened.arena.takes_calls
    return CacheSession(stub, channel, opened, arena, connection, takes_calls=takes_calls)


def _open_bulk(
    terms: SessionTerms,
    stub: cache_pb2_grpc.CacheServiceStub,
    channel: grpc.Channel,
    timeout_seconds: float,
    passed_over: dict[str, str],
) -> CacheSession | None:
    try:
        opened = _open(terms, stub, cache_pb2.TRANSPORT_BULK, timeout_seconds)
    except grpc.RpcError as error:
        reason = read_error(error).reason
        if terms.transport != "auto" or reason != "INVALID_TRANSPORT":
            raise
        passed_over["bulk"] = reason
        return None
    bulk_stub = bulk_pb2_grpc.BulkServiceStub(channel)

    def ask(seconds: float) -> bulk_pb2.OpenBulkLaneResponse:
        request = bulk_pb2.OpenBulkLaneRequest(session_id=opened.session_id)
        return answered(bulk_stub.OpenBulkLane(request, timeout=seconds))

    secure = terms.credentials is not None
    lanes = BulkLanes(ask, _host(terms.address), terms.lane_tls, secure)
    try:
        # Now, not with the first blocks: whether it can be reached is known before it is chosen.
        deadline = time.monotonic() + timeout_seconds
        lanes.connect(deadline)
        line = _line(lanes, deadline, passed_over)
    except (grpc.RpcError, OSError, ValueError, *LANE_FAILURES) as error:
        stub.CloseSession(
            cache_pb2.CloseSessionRequest(session_id=opened.session_id), timeout=timeout_seconds
        )
        if terms.transport != "auto":
            raise
        passed_over["bulk"] = _word(error)
        return None
    return CacheSession(stub, channel, opened, None, line, lanes, takes_calls=True)


def _line(lanes: BulkLanes, deadline: float, passed_over: dict[str, str]) -> socket.socket | None:
    """None, and why, where the service takes no further connection: blocks go over the first one,
    calls over gRPC."""
    try:
        return lanes.line(deadline)
    except LaneStoppedError as error:
        passed_over["line"] = error.reason
        return None


def _word(error: BaseException) -> str:
    """A failure's reason, where it has one, or what it says."""
    if isinstance(error, grpc.RpcError):
        wire = read_error(error)
        return wire.reason or wire.code.name
    return getattr(error, "reason", "") or str(error)[:200]


def _host(address: str) -> str:
    """Of a channel's address; loopback for a Unix socket."""
    if address.startswith("unix:"):
        return "127.0.0.1"
    return address.rpartition(":")[0].strip("[]")


def _open(
    terms: SessionTerms,
    stub: cache_pb2_grpc.CacheServiceStub,
    transport: "cache_pb2.Transport",
    timeout_seconds: float,
) -> cache_pb2.OpenSessionResponse:
    request = cache_pb2.OpenSessionRequest(
        key_scheme_version=KEY_SCHEME_VERSION,
        client_name=terms.client_name,
        namespace_id=terms.namespace_id,
        block_tokens=terms.block_tokens,
        block_bytes=terms.block_bytes,
        transport=transport,
        model=terms.model,
    )
    opened = answered(stub.OpenSession(request, timeout=timeout_seconds))
    if not opened.session_id or opened.max_blocks_per_call < 1 or _shortest_ttl(opened) <= 0:
        raise NonsenseError("the service opened a session without id, limits or lifetimes")
    return opened


def _shortest_ttl(opened: cache_pb2.OpenSessionResponse) -> float:
    ttls = (opened.session_ttl, opened.lease_ttl, opened.reservation_ttl)
    return min(ttl.seconds + ttl.nanos / 1e9 for ttl in ttls)
