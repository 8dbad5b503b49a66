"""The bulk lane's client side: connections of one session, and what travels over them.

    load:  LOAD -> DATA straight into the caller's pages, hashed as it lands
    store: STORE -> GO -> DATA from the caller's pages, who hashes them -> DONE

A connection that breaks costs nothing but itself: the call gets another ticket over the control
lane and goes on with the block it was at, at most `RESUMES_MAX` times. Invariant: a page counts as
loaded only when its own checksum was right. Any thread; a lock guards the idle connections, one
call at a time uses one.
"""

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import xxhash

from kvtier import bulk
from kvtier.bulk import BlockRun, Frame, Kind, MalformedFrameError, StopReason
from kvtier.bulk_socket import FrameSocket, ReadyFrame, ready
from kvtier.keys import BlockHash, checksum_seed
from kvtier.v1 import bulk_pb2
from worker.landing import PageBytes
from worker.transfer import NonsenseError, TimeUpError, page_checksum

__all__ = ["BulkLanes", "LaneStoppedError", "Loaded"]

IDLE_MAX = 2
"""Connections kept for later: one for loads, one for stores."""

RESUMES_MAX = 2

Ask = Callable[[float], bulk_pb2.OpenBulkLaneResponse]
"""Asks the control lane for a ticket, within seconds. Raises grpc.RpcError."""


class LaneStoppedError(Exception):
    """The service refused or ended a call on the lane; `reason` as the control lane has them."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the bulk lane was stopped: {reason}")
        self.reason = reason


class _LaneBrokenError(ConnectionError):
    """The connection is gone; another one may go on."""


class BulkLanes:
    """Connections of one session."""

    def __init__(
        self,
        ask: Ask,
        host: str,
        tls: ssl.SSLContext | None,
        secure: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`host`: where the control lane is; `secure`: it has TLS, so the lane must."""
        self._ask = ask
        self._host = host
        self._tls = tls
        self._secure = secure
        self._clock = clock
        self._lock = threading.Lock()
        self._idle: list[_Lane] = []
        self._closed = False
        self._takes_calls = False
        """What the service said last."""
        self.resumed_count = 0
        """Calls' connections that broke and were replaced. Written under the lock."""

    def load(
        self,
        lease_id: str,
        first: int,
        blocks: Sequence[tuple[BlockHash, PageBytes, int]],
        deadline: float,
        loaded: "Loaded",
    ) -> None:
        """Loads `blocks` (hash, page, checksum), readable from index `first` on.

        `loaded` counts, also when it raises. When it does not, and fewer than all are loaded, the
        next one is corrupt or `deadline` passed. Raises LaneStoppedError, NonsenseError, OSError
        (TimeoutError for the deadline), TimeUpError, grpc.RpcError.
        """
        self._going_on(lambda lane: lane.load(lease_id, first, blocks, deadline, loaded), deadline)

    def store(
        self,
        reservation_id: str,
        blocks: Sequence[tuple[int, memoryview]],
        deadline: float,
        begun: Callable[[], None],
        sent: Callable[[int], None],
    ) -> None:
        """Sends `blocks` (index in the chain, page): all that the reservation is missing.

        Calls `begun` before the first byte, when the service waits for nothing but them, and `sent`
        after each frame with how many leading blocks the kernel has its own copy of; whenever a
        connection took over, again. Raises as `load`.
        """
        self._going_on(
            lambda lane: lane.store(reservation_id, blocks, deadline, begun, sent), deadline
        )

    def line(self, deadline: float) -> socket.socket | None:
        """A connection that carries the session's calls from now on; None where the service takes
        none. The caller owns it. Raises as `load`. REQUIRES: `connect` was called."""
        if not self._takes_calls:
            return None
        return self._open(deadline).to_line(deadline)

    def connect(self, deadline: float) -> None:
        """Opens a connection for later. Raises as `load`."""
        self._give_back(self._open(deadline))

    def close(self) -> None:
        """Calls that still run end by themselves. Idempotent."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for lane in idle:
            lane.close()

    def _going_on(self, work: "Callable[[_Lane], None]", deadline: float) -> None:
        for resumes in range(RESUMES_MAX + 1):
            lane = self._take(deadline)
            try:
                work(lane)
            except BaseException as error:
                lane.close()
                if not isinstance(error, _LaneBrokenError) or resumes == RESUMES_MAX:
                    raise
                with self._lock:
                    self.resumed_count += 1
            else:
                self._give_back(lane)
                return

    def _take(self, deadline: float) -> "_Lane":
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return self._open(deadline)

    def _give_back(self, lane: "_Lane") -> None:
        with self._lock:
            if lane.usable and not self._closed and len(self._idle) < IDLE_MAX:
                self._idle.append(lane)
                return
        lane.close()

    def _open(self, deadline: float) -> "_Lane":
        seconds = _seconds_left(deadline, self._clock)
        opened = self._ask(seconds)
        if opened.tls != (self._tls is not None) or (self._secure and not opened.tls):
            raise LaneStoppedError("TLS_REQUIRED")
        if not 0 < opened.port < 65536 or len(opened.ticket) != bulk.TICKET_BYTES:
            raise NonsenseError("the service named a bulk lane without port or ticket")
        self._takes_calls = opened.takes_calls
        host = opened.host or self._host
        connection = socket.create_connection(
            (host, opened.port), _seconds_left(deadline, self._clock)
        )
        try:
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_hostname=host)
            lane = _Lane(FrameSocket(connection, bulk.FROM_SERVICE, clock=self._clock), self._clock)
            lane.greet(opened.ticket, deadline)
        except BaseException:
            connection.close()
            raise
        return lane


class Loaded:
    """How many leading pages have what their checksum says."""

    def __init__(self) -> None:
        self.count = 0


class _Checksums:
    """Checksums of blocks whose bytes pass, in order."""

    def __init__(self, blocks: Sequence[tuple[BlockHash, PageBytes]]) -> None:
        self._blocks = blocks
        self._at = 0
        self._passed_bytes = 0
        self._digest: xxhash.xxh3_64 | None = None

    def passed(self, piece: memoryview) -> int | None:
        """The next bytes, of one page. None within it, at its end its checksum."""
        block_hash, page = self._blocks[self._at]
        if len(piece) == page.nbytes:
            found = page_checksum(block_hash, page)
        else:
            if self._digest is None:
                self._digest = xxhash.xxh3_64(seed=checksum_seed(block_hash))
            self._digest.update(piece)
            self._passed_bytes += len(piece)
            if self._passed_bytes < page.nbytes:
                return None
            found, self._digest, self._passed_bytes = self._digest.intdigest(), None, 0
        self._at += 1
        return found


class _Lane:
    """One connection. One thread at a time."""

    def __init__(self, frames: FrameSocket, clock: Callable[[], float]) -> None:
        self._frames = frames
        self._clock = clock
        self._call = 0
        self.usable = True
        """False after a call that left bytes on their way."""

    def close(self) -> None:
        self._frames.close()

    def greet(self, ticket: bytes, deadline: float) -> None:
        with self._judged(deadline):
            self._frames.send(Frame(Kind.HELLO, length=len(ticket)), ticket, deadline=deadline)
            self._answer(Kind.WELCOME, 0, deadline)

    def to_line(self, deadline: float) -> socket.socket:
        """The connection, which carries no blocks any more."""
        with self._judged(deadline):
            self._frames.send(Frame(Kind.CALLS), deadline=deadline)
            self._answer(Kind.WELCOME, 0, deadline)
        return self._frames.detach()

    def load(
        self,
        lease_id: str,
        first: int,
        blocks: Sequence[tuple[BlockHash, PageBytes, int]],
        deadline: float,
        loaded: Loaded,
    ) -> None:
        """Goes on after `loaded.count` blocks."""
        self._call += 1
        rest = blocks[loaded.count :]
        payload = bulk.pack_load(_raw_id(lease_id), len(rest))
        at = first + loaded.count
        run = BlockRun(range(at, at + len(rest)), [page.data for _, page, _ in rest])
        sums = _Checksums([(block_hash, page) for block_hash, page, _ in rest])
        promised = iter([checksum for _, _, checksum in rest])
        with self._judged(deadline):
            self._frames.send(
                Frame(Kind.LOAD, self._call, at, length=len(payload)), payload, deadline=deadline
            )
            while not run.ended():
                right = self._receive(run, sums, promised, loaded, deadline)
                if not right or self._clock() >= deadline:
                    self.usable = run.ended()
                    return

    def _receive(
        self,
        run: BlockRun,
        sums: _Checksums,
        promised: Iterator[int],
        loaded: Loaded,
        deadline: float,
    ) -> bool:
        """One frame of `run`; whether every page that it ended is right."""
        frame = self._answer(Kind.DATA, self._call, deadline)
        if (frame.index, frame.offset) != run.place():
            raise NonsenseError("a frame out of order")
        pieces = run.take(frame.length)
        self._frames.receive_pieces(pieces, deadline)
        for piece in pieces:
            found = sums.passed(piece)
            if found is None:
                continue
            if found != next(promised):
                return False
            loaded.count += 1
        return True

    def store(
        self,
        reservation_id: str,
        blocks: Sequence[tuple[int, memoryview]],
        deadline: float,
        begun: Callable[[], None],
        sent: Callable[[int], None],
    ) -> None:
        self._call += 1
        payload = _raw_id(reservation_id)
        with self._judged(deadline):
            self._frames.send(
                Frame(Kind.STORE, self._call, length=len(payload)), payload, deadline=deadline
            )
            # The service looks for their slabs meanwhile.
            frames = self._ready(blocks, 0)
            standing = self._answer(Kind.GO, self._call, deadline).index
            if standing > len(blocks):
                raise NonsenseError("more blocks stand than are missing")
            if standing:
                frames = self._ready(blocks, standing)
            begun()
            for frame, whole_count in frames:
                self._frames.send_ready(frame, deadline)
                sent(whole_count)
            if self._answer(Kind.DONE, self._call, deadline).index != len(blocks):
                raise NonsenseError("a store was done before its last block")

    def _ready(
        self, blocks: Sequence[tuple[int, memoryview]], standing: int
    ) -> list[tuple[ReadyFrame, int]]:
        """The frames of a store, each with how many leading blocks end with it or before."""
        run = BlockRun([at for at, _ in blocks], [page for _, page in blocks], standing)
        return [(ready(*each), run.whole_count) for each in run.frames(self._call)]

    def _answer(self, kind: Kind, call: int, deadline: float) -> Frame:
        """The next frame, which must be `kind`. Raises LaneStoppedError for a STOP."""
        frame = self._frames.receive_header(deadline)
        if frame.kind is Kind.STOP and frame.call in (0, call):
            reason = StopReason(frame.index).name
            if frame.call != call:
                raise _LaneBrokenError(f"the service ended the bulk connection: {reason}")
            raise LaneStoppedError(reason)
        if frame.kind is not kind or frame.call != call:
            raise NonsenseError(f"{kind.name} was due on the bulk lane, {frame.kind.name} came")
        return frame

    @contextlib.contextmanager
    def _judged(self, deadline: float) -> Iterator[None]:
        """What went wrong, in our own words."""
        try:
            yield
        except MalformedFrameError as error:
            raise NonsenseError(f"the bulk lane: {error}") from None
        except TimeoutError:
            if self._clock() >= deadline:
                raise
            raise _LaneBrokenError("the bulk lane stalled") from None
        except OSError as error:
            raise _LaneBrokenError(f"the bulk lane broke: {error}") from error


def _raw_id(text: str) -> bytes:
    try:
        return bulk.raw_id(text)
    except MalformedFrameError as error:
        raise NonsenseError(str(error)) from None


def _seconds_left(deadline: float, clock: Callable[[], float]) -> float:
    left = deadline - clock()
    if left <= 0:
        raise TimeUpError("the caller's time is up")
    return left
