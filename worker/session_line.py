"""SessionLine: a session's hot calls over the arena's socket, in place of gRPC.

    call -> frame out -> whoever waits and finds nobody reading reads for all -> answer

A call over gRPC takes half a millisecond of two processes' time; this takes a tenth. Nobody wakes
anybody to read: the thread that waits for an answer reads the socket itself, hands others theirs,
and leaves the reading to one of them when its own has come. Who waits until the service takes more
reads too, where nobody else does: the service takes nothing while its answers are not taken.
Answers that nobody waits for are read by a thread of their own, started with the first of them.

Invariant: frames go out whole, one after the other, also where a call runs out of time in the
middle of its own; an answer reaches its own call or nobody; each wait ends at its call's deadline,
but for answers that nobody waits for, which may come `LATE_SECONDS` later. What goes wrong is a
grpc.RpcError as gRPC's own, or NonsenseError. Any thread; locks guard the socket's two directions
and the table of calls.
"""

import contextlib
import logging
import math
import queue
import select
import socket
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2
from grpc_status import rpc_status

from kvtier.bulk import MalformedFrameError
from kvtier.session_line import (
    FRAME_BYTES_MAX,
    FROM_SERVICE,
    Frames,
    LineFrame,
    Method,
    Outcome,
    pack,
)
from kvtier.v1 import cache_pb2, cache_pb2_grpc
from worker.transfer import NonsenseError

__all__ = ["LineCallError", "LineStub", "SessionLine"]

log = logging.getLogger(__name__)

RECEIVE_BYTES = 64 * 1024

LATE_SECONDS = 5.0
"""After a call's deadline its answer is still taken where a callback waits for it: the service was
told of no deadline, and what it reserved meanwhile has to be given back."""

LOOK_SECONDS = 0.05
"""Who waits until the service takes more looks so often whether somebody still reads."""

Answer = TypeVar("Answer", bound=Message)


class LineCallError(grpc.RpcError):
    """A failed call, with what `kvtier.errors.read_error` asks of one of gRPC's."""

    def __init__(
        self, code: grpc.StatusCode, details: str, trailing: tuple[tuple[str, bytes], ...] = ()
    ) -> None:
        super().__init__(f"{code.name}: {details}")
        self._code, self._details, self._trailing = code, details, trailing

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> Any:
        return self._trailing


class LineFuture(Generic[Answer]):
    """An answer to come. The names are those of a gRPC future."""

    def __init__(self, line: "SessionLine", answer: type[Answer], deadline: float) -> None:
        self._line = line
        self._answer = answer
        self.deadline = deadline
        """Of the monotonic clock; nobody waits beyond it."""
        self.frame: LineFrame | None = None
        """Written under the line's lock, once."""

    def done(self) -> bool:
        return self.frame is not None

    def cancelled(self) -> bool:
        return False

    def exception(self) -> Exception | None:
        """Waits. None when there is an answer."""
        try:
            self.result()
        except (grpc.RpcError, NonsenseError) as error:
            return error
        return None

    def result(self) -> Answer:
        """Waits. Raises LineCallError, NonsenseError."""
        frame = self._line.wait(self, self.deadline)
        try:
            if frame.kind == Outcome.ANSWER:
                return self._answer.FromString(frame.message)
            status = rpc_status.to_status(status_pb2.Status.FromString(frame.message))
        except (DecodeError, ValueError, KeyError) as error:
            raise NonsenseError(f"an answer over the line that does not parse: {error}") from None
        raise LineCallError(status.code, status.details, tuple(status.trailing_metadata))

    def add_done_callback(self, callback: Callable[["LineFuture[Answer]"], None]) -> None:
        """Nobody is going to wait: `callback` is called from another thread, however it ends; of a
        line that is closed, from this one."""
        self._line.leave(self, callback)


class SessionLine:
    """The client's end of `connection`, which it owns."""

    def __init__(
        self, connection: socket.socket, clock: Callable[[], float] = time.monotonic
    ) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._clock = clock
        self._frames = Frames(FROM_SERVICE)
        self._readable = select.poll()
        self._readable.register(connection, select.POLLIN)
        self._sending = threading.Lock()
        self._rest = memoryview(b"")
        """Of a frame whose call ran out of time in the middle of it. Written under `_sending`."""
        self._changed = threading.Condition()
        # Under `_changed`:
        self._calls: weakref.WeakValueDictionary[int, LineFuture[Any]] = (
            weakref.WeakValueDictionary()
        )
        """Without an answer. One that nobody holds any more is nobody's, and not kept for it."""
        self._last_call = 0
        self._reading = False
        self._closed = False
        self._broken: Exception | None = None
        """Why no call can be made any more."""
        self._left: queue.SimpleQueue[Callable[[], None] | None] | None = None

    def call(
        self, method: Method, request: Message, answer: type[Answer], seconds: float
    ) -> LineFuture[Answer]:
        """Sends a call that may take so long. When the time is up in the middle of sending it, its
        answer is a late one. Raises LineCallError, NonsenseError."""
        message = request.SerializeToString()
        if len(message) > FRAME_BYTES_MAX:
            raise LineCallError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"a call of {len(message)} bytes; {FRAME_BYTES_MAX} go over the session's line",
            )
        future = LineFuture(self, answer, self._clock() + seconds)
        with self._changed:
            self._check()
            number = self._last_call = (self._last_call + 1) % 2**32
            self._calls[number] = future
        self._send(pack(LineFrame(number, method, message)), future.deadline)
        return future

    def wait(self, future: LineFuture[Any], until: float) -> LineFrame:
        """The answer's frame, at the latest `until`. Raises LineCallError, NonsenseError."""
        with self._changed:
            while self._reading and future.frame is None and self._broken is None:
                if not self._changed.wait(until - self._clock()) and future.frame is None:
                    raise _time_up()
            if future.frame is not None:
                return future.frame
            self._check()
            self._reading = True
        try:
            while future.frame is None:
                self._read(until)
                if future.frame is None and self._clock() >= until:
                    raise _time_up()
            return future.frame
        finally:
            self._end_reading()

    def leave(self, future: LineFuture[Any], callback: Callable[[LineFuture[Any]], None]) -> None:
        """Has another thread wait for `future`, then call `callback`."""

        def await_it() -> None:
            until = future.deadline + LATE_SECONDS
            with contextlib.suppress(grpc.RpcError, NonsenseError):
                self._finish(until)
                self.wait(future, until)
            callback(future)

        with self._changed:
            closed = self._closed
            if not closed:
                self._left_queue().put(await_it)
        if closed:
            await_it()

    def _left_queue(self) -> "queue.SimpleQueue[Callable[[], None] | None]":
        """Of the thread that waits for what is left. REQUIRES: `_changed` is held, not closed."""
        if self._left is None:
            self._left = queue.SimpleQueue()
            threading.Thread(
                target=_run_all, args=(self._left,), name="cache-line-left", daemon=True
            ).start()
        return self._left

    def close(self) -> None:
        """Ends the line, and the session with it. Waiting calls end. Idempotent."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            if self._left is not None:
                self._left.put(None)
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)  # wakes who reads
            if not self._reading:
                self._connection.close()

    def _check(self) -> None:
        """REQUIRES: `_changed` is held."""
        if self._broken is not None:
            raise self._broken
        if self._closed:
            raise LineCallError(grpc.StatusCode.UNAVAILABLE, "the session's line is closed")

    def _send(self, data: bytes, deadline: float) -> None:
        """Of a frame that is partly out when the time is up the rest is sent before all else: by
        whoever sends next, or waits for what was left."""
        if not self._sending.acquire(timeout=max(0.0, deadline - self._clock())):
            raise _time_up()  # another call is being sent
        try:
            if not self._push(deadline):
                raise _time_up()
            self._rest = memoryview(data)
            if not self._push(deadline) and len(self._rest) == len(data):
                self._rest = memoryview(b"")
                raise _time_up()
        finally:
            self._sending.release()

    def _push(self, deadline: float) -> bool:
        """Sends what is left of a frame; False when the time is up first. Raises LineCallError.
        REQUIRES: `_sending` is held."""
        try:
            while self._rest:
                try:
                    self._rest = self._rest[self._connection.send(self._rest) :]
                except BlockingIOError:
                    self._await_room(deadline)
        except TimeoutError:
            return False
        except (OSError, ValueError) as error:  # ValueError: it was closed meanwhile
            raise self._break(
                LineCallError(grpc.StatusCode.UNAVAILABLE, f"the session's line broke: {error}")
            ) from None
        return True

    def _finish(self, until: float) -> None:
        """Sends what is left of a frame, if nobody else does. Raises LineCallError."""
        if self._rest and self._sending.acquire(timeout=max(0.0, until - self._clock())):
            try:
                self._push(until)
            finally:
                self._sending.release()

    def _await_room(self, deadline: float) -> None:
        """Waits for a while until the service takes more, and reads if nobody does. Raises
        TimeoutError."""
        left = deadline - self._clock()
        if left <= 0:
            raise TimeoutError("the service does not read")
        reads = self._begin_reading()
        try:
            room = select.poll()
            room.register(self._connection, select.POLLOUT | (select.POLLIN if reads else 0))
            came = room.poll(_milliseconds(left if reads else min(left, LOOK_SECONDS)))
            if reads and any(events & ~select.POLLOUT for _, events in came):
                self._read(deadline)
        finally:
            if reads:
                self._end_reading()

    def _begin_reading(self) -> bool:
        """False when somebody reads, or nobody can any more."""
        with self._changed:
            if self._reading or self._closed or self._broken is not None:
                return False
            self._reading = True
            return True

    def _end_reading(self) -> None:
        with self._changed:
            self._reading = False
            self._changed.notify_all()
            if self._closed:
                self._connection.close()

    def _read(self, deadline: float) -> None:
        """Waits for some bytes at most until `deadline`. REQUIRES: this thread is the reader."""
        if not self._readable.poll(_milliseconds(deadline - self._clock())):
            return
        try:
            data = self._connection.recv(RECEIVE_BYTES)
            if not data:
                raise ConnectionResetError("the service closed it")
            frames = self._frames.feed(data)
        except BlockingIOError:
            return
        except OSError as error:
            raise self._break(
                LineCallError(grpc.StatusCode.UNAVAILABLE, f"the session's line broke: {error}")
            ) from None
        except MalformedFrameError as error:
            raise self._break(NonsenseError(str(error))) from None
        with self._changed:
            for frame in frames:
                future = self._calls.pop(frame.call, None)
                if future is not None:
                    future.frame = frame
            self._changed.notify_all()

    def _break(self, error: Exception) -> Exception:
        """Ends every call, now and later; the error to raise."""
        with self._changed:
            self._broken = self._broken or error
            self._calls.clear()
            self._changed.notify_all()
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)  # wakes who reads
            return self._broken


def _run_all(work: "queue.SimpleQueue[Callable[[], None] | None]") -> None:
    while (each := work.get()) is not None:
        try:
            each()
        except Exception:
            # The others that are left have theirs to come.
            log.exception("what was to follow an answer failed")


def _time_up() -> LineCallError:
    return LineCallError(grpc.StatusCode.DEADLINE_EXCEEDED, "the call's time is up")


def _milliseconds(seconds: float) -> int:
    return math.ceil(max(0.0, seconds) * 1000)


class _LineMethod(Generic[Answer]):
    """A call as a generated stub has it."""

    def __init__(self, line: SessionLine, method: Method, answer: type[Answer]) -> None:
        self._line, self._method, self._answer = line, method, answer

    def __call__(self, request: Message, timeout: float) -> Answer:
        return self.future(request, timeout).result()

    def future(self, request: Message, timeout: float) -> LineFuture[Answer]:
        return self._line.call(self._method, request, self._answer, timeout)


class LineStub:
    """The generated stub's place: hot calls over the line, every other one as before."""

    def __init__(self, stub: cache_pb2_grpc.CacheServiceStub, line: SessionLine) -> None:
        self._stub = stub
        self.AcquireResident = _LineMethod(
            line, Method.ACQUIRE_RESIDENT, cache_pb2.AcquireResidentResponse
        )
        self.ReserveBlocks = _LineMethod(
            line, Method.RESERVE_BLOCKS, cache_pb2.ReserveBlocksResponse
        )
        self.CommitBlocks = _LineMethod(line, Method.COMMIT_BLOCKS, cache_pb2.CommitBlocksResponse)
        self.LookupPrefix = _LineMethod(line, Method.LOOKUP_PREFIX, cache_pb2.LookupPrefixResponse)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stub, name)

    def as_stub(self) -> cache_pb2_grpc.CacheServiceStub:
        return cast(cache_pb2_grpc.CacheServiceStub, self)
