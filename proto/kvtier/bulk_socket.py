"""Frames over a connected TCP socket, with or without TLS; blocking, every wait bounded.

In clear the kernel keeps the time (SO_RCVTIMEO, SO_SNDTIMEO), so that one call takes or fills a
whole piece; Python's own timeouts would wake up for each packet. One thread sends and receives; any
thread may `cut`. What goes wrong is an OSError: TimeoutError when the peer did not move its bytes
in time, ConnectionError when it is gone.
"""

import contextlib
import math
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Sequence

from kvtier.bulk import HEADER_BYTES, PIECES_MAX, Frame, Kind, pack, unpack

__all__ = ["STALL_SECONDS", "FrameSocket", "ReadyFrame", "ready"]

STALL_SECONDS = 10.0
"""How long a piece may be on its way."""

GOODBYE_SECONDS_MAX = 0.5

GATHERED_BYTES = 512 * 1024
"""A receiver that waits for a large payload sleeps until so much is there. Otherwise the kernel
wakes it for each packet, and on loopback it is the sender's processor that does."""

_SECONDS_MIN = 0.001
"""The kernel takes 0 for no limit."""

_TIMEVAL = struct.Struct("@ll")

Bytes = bytes | bytearray | memoryview

ReadyFrame = tuple[Sequence[Bytes], int]
"""A frame's header and pieces, and how many bytes they are."""


def ready(frame: Frame, pieces: Sequence[Bytes] = ()) -> ReadyFrame:
    """A frame to be sent. Who sends many has them ready before the first: a mebibyte that is sent
    drives the interpreter out of the processor's caches, and each step between two is slow."""
    return [pack(frame), *pieces], HEADER_BYTES + frame.length


class FrameSocket:
    """Owns `connection`. `kinds`: the frames that the peer may send."""

    def __init__(
        self,
        connection: socket.socket,
        kinds: frozenset[Kind],
        stall_seconds: float = STALL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._kinds = kinds
        self._stall_seconds = stall_seconds
        self._clock = clock
        self._tls = isinstance(connection, ssl.SSLSocket)
        self._limits: dict[int, float] = {}
        self._readable = select.poll()
        self._readable.register(connection, select.POLLIN)
        self._header = bytearray(HEADER_BYTES)
        self._header_view = memoryview(self._header)
        self._header_came = 0
        """Bytes of the next header that came with the payload before it."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not self._tls:
            connection.setblocking(True)

    def send(self, frame: Frame, *pieces: Bytes, deadline: float | None = None) -> None:
        """Sends the frame with `pieces` as its payload, in one system call where it can be.
        Returns when the kernel has its own copy of everything."""
        self.send_ready(ready(frame, pieces), deadline)

    def send_ready(self, frame: ReadyFrame, deadline: float | None = None) -> None:
        """As `send` of what was made ready before."""
        parts, size = frame
        until, sent = self._until(deadline), 0
        try:
            if not self._tls:
                self._limit(socket.SO_SNDTIMEO, until)
                sent = self._connection.sendmsg(parts)
                if sent == size:
                    return
            for part in parts:
                if sent < len(part):
                    self._push(memoryview(part)[sent:], until)
                sent = max(0, sent - len(part))
        except (BlockingIOError, ssl.SSLWantWriteError):
            raise TimeoutError("the peer does not take what is sent") from None

    def receive_header(self, deadline: float | None = None) -> Frame:
        """The next frame's header. Raises MalformedFrameError too."""
        came, self._header_came = self._header_came, 0
        if came < HEADER_BYTES:
            self.receive_into(memoryview(self._header)[came:], deadline)
        return unpack(self._header, self._kinds)

    def await_header(self) -> Frame | None:
        """The next header, however long its first byte takes; None when the peer closed."""
        view = memoryview(self._header)
        while True:
            try:
                got = self._receive(view[:1], self._clock() + self._stall_seconds)
            except TimeoutError:
                continue
            if not got:
                return None
            self.receive_into(view[1:])
            return unpack(self._header, self._kinds)

    def receive_into(self, view: memoryview, deadline: float | None = None) -> None:
        """Fills `view`, contiguous bytes; by `deadline` (of the clock) where that comes first."""
        until = self._until(deadline)
        while view:
            got = self._receive(view, until)
            if not got:
                raise ConnectionResetError("the peer closed the connection")
            view = view[got:]
            if view and self._clock() >= until:
                raise TimeoutError("the peer does not send what it began")

    def receive_pieces(
        self, pieces: Sequence[memoryview], deadline: float | None = None, *, more: bool = False
    ) -> None:
        """Fills all of `pieces`, contiguous bytes each, in one system call where it can be. `more`:
        another frame follows, whose header may come with them; `receive_header` has it then."""
        got = 0
        if not self._tls:
            wanted = list(pieces[:PIECES_MAX])
            until, size = self._until(deadline), sum(map(len, wanted))
            if size >= GATHERED_BYTES:
                self._gather(until)
            if more and len(pieces) < PIECES_MAX:
                wanted.append(self._header_view)
            self._limit(socket.SO_RCVTIMEO, until)
            try:
                got = self._connection.recvmsg_into(wanted, 0, socket.MSG_WAITALL)[0]
            except BlockingIOError:
                raise TimeoutError("the peer sends nothing") from None
        for piece in pieces:
            if got < len(piece):
                self.receive_into(piece[got:], deadline)
            got = max(0, got - len(piece))
        self._header_came = got

    def receive(self, size: int, deadline: float | None = None) -> bytes:
        payload = bytearray(size)
        self.receive_into(memoryview(payload), deadline)
        return bytes(payload)

    def say_goodbye(self, frame: Frame) -> None:
        """Sends a last frame and lets the peer read it: what it still sends is thrown away for a
        moment, because bytes that nobody reads would reset the connection under it."""
        until = self._clock() + GOODBYE_SECONDS_MAX
        scrap = memoryview(bytearray(64 * 1024))
        with contextlib.suppress(OSError):
            self.send(frame, deadline=until)
            socket.socket.shutdown(self._connection, socket.SHUT_WR)
            while self._clock() < until and self._receive(scrap, until):
                pass

    def cut(self) -> None:
        """Ends every wait of the owning thread, now and later. Any thread; idempotent."""
        with contextlib.suppress(OSError):
            # Not SSLSocket.shutdown: that would let the owner read on without TLS.
            socket.socket.shutdown(self._connection, socket.SHUT_RDWR)

    def detach(self) -> socket.socket:
        """The connection, for something else. Not to be used here any more."""
        return self._connection

    def close(self) -> None:
        self._connection.close()

    def _until(self, deadline: float | None) -> float:
        stall = self._clock() + self._stall_seconds
        return stall if deadline is None else min(stall, deadline)

    def _receive(self, view: memoryview, until: float) -> int:
        self._limit(socket.SO_RCVTIMEO, until)
        flags = 0 if self._tls else socket.MSG_WAITALL
        try:
            return self._connection.recv_into(view, 0, flags)
        except (BlockingIOError, ssl.SSLWantReadError):
            raise TimeoutError("the peer sends nothing") from None

    def _gather(self, until: float) -> None:
        """Waits until `GATHERED_BYTES` are there, or the peer is gone. When the time is up first,
        whoever receives finds out how much is there. REQUIRES: at least so many are due."""
        option = self._connection.setsockopt
        option(socket.SOL_SOCKET, socket.SO_RCVLOWAT, GATHERED_BYTES)
        try:
            self._readable.poll(math.ceil(max(0.0, until - self._clock()) * 1000))
        finally:
            # A receive that waits for all would wait for so many again, when less is left.
            option(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)

    def _push(self, view: memoryview, until: float) -> None:
        while view:
            if self._clock() >= until:
                raise TimeoutError("the peer does not take what is sent")
            self._limit(socket.SO_SNDTIMEO, until)
            view = view[self._connection.send(view) :]

    def _limit(self, option: int, until: float) -> None:
        """Bounds the next system call; a limit that is nearly the same stays."""
        seconds = max(_SECONDS_MIN, until - self._clock())
        before = self._limits.get(option, 0.0)
        if seconds <= before <= seconds * 1.01:
            return
        self._limits[option] = seconds
        if self._tls:
            self._connection.settimeout(seconds)
        else:
            whole = int(seconds)
            micros = int((seconds - whole) * 1e6)
            self._connection.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL.pack(whole, micros))
