"""One connection of the bulk lane, served by a thread of its own.

    TLS -> HELLO (ticket) -> WELCOME -> { LOAD -> DATA ... | STORE -> GO -> DATA ... -> DONE }
                                     -> CALLS: the loop's, as the session's line, to its end

The thread asks the loop for a transfer (`LoopDoor`), moves its bytes between socket and arena, and
gives it back, whatever happens. Bytes are moved and not looked at: their checksum is the client's.
Invariant: every `begin` has its `end`, and no view is touched after that.
"""

import asyncio
import concurrent.futures
import logging
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from cache_service.bulk.transfers import LaneEntry, LoadTransfer, StoreTransfer, Transfers
from cache_service.errors import SessionUnknownError, TicketRefusedError
from cache_service.session_line import LineDoor, SessionLine
from kvtier.bulk import (
    FROM_CLIENT,
    BlockRun,
    Frame,
    Kind,
    MalformedFrameError,
    StopReason,
    id_of,
    stop_reason,
    unpack_load,
)
from kvtier.bulk_socket import FrameSocket
from kvtier.errors import KvtierError
from kvtier.principals import principal_of

__all__ = ["Lane", "LoopDoor"]

log = logging.getLogger(__name__)

HELLO_SECONDS_MAX = 5.0
LOOP_SECONDS_MAX = 10.0
"""How long a thread waits for the event loop."""

T = TypeVar("T")


class LoopDoor:
    """The event loop, from other threads."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._tasks: set[asyncio.Task[None]] = set()

    def ask(self, begin: Callable[[], Awaitable[T]], undo: Callable[[T], object]) -> T:
        """What `begin` gives or raises, on the loop. When that takes too long, TimeoutError, and
        what it gives later is undone. RuntimeError when the loop is closed."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        async def run() -> None:
            try:
                given = await begin()
            except BaseException as error:
                if future.set_running_or_notify_cancel():
                    future.set_exception(error)
                return
            if future.set_running_or_notify_cancel():
                future.set_result(given)
            else:
                undo(given)

        def start() -> None:
            task = self._loop.create_task(run())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        self._loop.call_soon_threadsafe(start)
        try:
            return future.result(LOOP_SECONDS_MAX)
        except TimeoutError:
            if future.cancel():
                raise
            return future.result()

    def settle(self, work: Callable[[], T]) -> T:
        """What `work` gives, on the loop. It is done in any case, also after a TimeoutError."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        return future.result(LOOP_SECONDS_MAX)

    def tell(self, work: Callable[[], object]) -> None:
        """`work` on the loop, later, in the order of telling."""
        self._loop.call_soon_threadsafe(work)


class Lane:
    """One accepted connection. `run` once, in a thread of its own; `cut` from any."""

    def __init__(
        self,
        connection: socket.socket,
        tls: ssl.SSLContext | None,
        transfers: Transfers,
        calls: LineDoor,
        door: LoopDoor,
        stall_seconds: float,
    ) -> None:
        """Takes over `connection`. Raises OSError."""
        if tls is not None:
            connection = tls.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        self._connection = connection
        self._frames = FrameSocket(connection, FROM_CLIENT, stall_seconds)
        self._transfers = transfers
        self._calls = calls
        self._door = door

    def cut(self) -> None:
        self._frames.cut()

    def run(self) -> None:
        """Returns when the connection has ended; raises nothing."""
        try:
            self._serve()
        except MalformedFrameError as error:
            log.warning("a bulk connection ends: %s", error)
            self._frames.say_goodbye(Frame(Kind.STOP, 0, StopReason.MALFORMED_FRAME))
        except SessionUnknownError as error:
            self._frames.say_goodbye(Frame(Kind.STOP, 0, stop_reason(error.reason)))
        except TicketRefusedError as error:
            log.warning("the bulk lane refused a ticket")
            self._frames.say_goodbye(Frame(Kind.STOP, 0, stop_reason(error.reason)))
        except TimeoutError:
            self._frames.say_goodbye(Frame(Kind.STOP, 0, StopReason.STALLED))
        except OSError as error:
            log.debug("a bulk connection broke: %s", error)
        except RuntimeError:
            log.debug("a bulk connection outlived the loop")
        except Exception:
            log.exception("unexpected failure on the bulk lane")
            self._frames.say_goodbye(Frame(Kind.STOP, 0, StopReason.INTERNAL))
        finally:
            self._frames.close()

    def _serve(self) -> None:
        entry = self._enter()
        try:
            self._frames.send(Frame(Kind.WELCOME))
            while (frame := self._frames.await_header()) is not None:
                if frame.kind is Kind.LOAD:
                    self._load(entry, frame)
                elif frame.kind is Kind.STORE:
                    self._store(entry, frame)
                elif frame.kind is Kind.CALLS:
                    self._carry_calls(entry)
                    return
                else:
                    raise MalformedFrameError(f"a {frame.kind.name} between calls")
        finally:
            self._door.tell(lambda: self._transfers.leave(entry))

    def _enter(self) -> LaneEntry:
        """Raises TicketRefusedError too."""
        principal_key = self._principal_key()
        deadline = time.monotonic() + HELLO_SECONDS_MAX
        frame = self._frames.receive_header(deadline)
        if frame.kind is not Kind.HELLO:
            raise MalformedFrameError("a connection begins with HELLO")
        ticket = self._frames.receive(frame.length, deadline)

        async def enter() -> LaneEntry:
            return self._transfers.enter(ticket, principal_key, self.cut)

        return self._door.ask(enter, self._transfers.leave)

    def _carry_calls(self, entry: LaneEntry) -> None:
        """The loop has the connection until it ends, which it does with its session. Raises
        MalformedFrameError, SessionUnknownError."""
        if isinstance(self._connection, ssl.SSLSocket):
            raise MalformedFrameError("a connection with TLS carries no calls")
        ended = threading.Event()

        async def begin() -> SessionLine:
            line = SessionLine(self._transfers.attached(entry), self._calls)
            line.ended.add_done_callback(lambda _: ended.set())
            return line

        async def hand_over() -> SessionLine:
            self._connection.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.connect_accepted_socket(lambda: line, self._connection)
            return line

        line = self._door.ask(begin, SessionLine.cut)
        self._frames.send(Frame(Kind.WELCOME))
        self._door.ask(hand_over, SessionLine.cut)
        # As long as the session at most: the tick cuts connections of sessions that ended.
        ended.wait()

    def _principal_key(self) -> str | None:
        """Whom the connection proves: nobody, in clear. Raises OSError."""
        connection = self._connection
        if not isinstance(connection, ssl.SSLSocket):
            return None
        connection.settimeout(HELLO_SECONDS_MAX)
        connection.do_handshake()
        certificate = connection.getpeercert(True)
        assert certificate is not None, "the context demands one"
        try:
            return principal_of(ssl.DER_cert_to_PEM_cert(certificate).encode()).key
        except ValueError:
            raise TicketRefusedError("the certificate cannot be read") from None

    def _load(self, entry: LaneEntry, frame: Frame) -> None:
        lease_id, count = unpack_load(self._frames.receive(frame.length))

        async def begin() -> LoadTransfer:
            return self._transfers.begin_load(entry, id_of(lease_id), frame.index, count)

        try:
            transfer = self._door.ask(begin, self._transfers.end_load)
        except KvtierError as error:
            self._frames.send(Frame(Kind.STOP, frame.call, stop_reason(error.reason)))
            return
        try:
            ended = self._send_blocks(frame, transfer)
        finally:
            self._door.tell(lambda: self._transfers.end_load(transfer))
        if ended is not None:
            self._frames.send(Frame(Kind.STOP, frame.call, ended))

    def _send_blocks(self, load: Frame, transfer: LoadTransfer) -> StopReason | None:
        views = transfer.views
        run = BlockRun(range(load.index, load.index + len(views)), views)
        for frame, pieces in run.frames(load.call):
            if transfer.ended is not None:
                return transfer.ended
            self._frames.send(frame, *pieces)
            transfer.sent_bytes += frame.length
        return None

    def _store(self, entry: LaneEntry, frame: Frame) -> None:
        reservation_id = id_of(self._frames.receive(frame.length))

        async def begin() -> StoreTransfer:
            return await self._transfers.begin_store(entry, reservation_id)

        try:
            transfer = self._door.ask(begin, self._transfers.end_store)
        except KvtierError as error:
            self._frames.send(Frame(Kind.STOP, frame.call, stop_reason(error.reason)))
            return
        try:
            self._frames.send(Frame(Kind.GO, frame.call, transfer.standing))
            self._receive_blocks(frame.call, transfer)
        except BaseException:
            self._door.tell(lambda: self._transfers.end_store(transfer))
            raise
        ended = self._door.settle(lambda: self._transfers.end_store(transfer))
        if ended is not None:
            self._frames.say_goodbye(Frame(Kind.STOP, frame.call, ended))
            raise ConnectionAbortedError("a store's reservation ended under way")
        self._frames.send(Frame(Kind.DONE, frame.call, transfer.standing))

    def _receive_blocks(self, call: int, transfer: StoreTransfer) -> None:
        """Counts `transfer.standing` up; stops early when the reservation ended."""
        run = BlockRun(transfer.missing, transfer.views, transfer.standing)
        while not run.ended():
            frame = self._frames.receive_header()
            if transfer.ended is not None:
                return
            expected = (Kind.DATA, call, *run.place())
            if (frame.kind, frame.call, frame.index, frame.offset) != expected:
                raise MalformedFrameError("block {} goes on at byte {}".format(*run.place()))
            pieces = run.take(frame.length)
            self._frames.receive_pieces(pieces, more=not run.ended())
            transfer.standing = run.whole_count
