"""A client of benchmarks: a session of its own, and its line with one call at a time.

Bytes go out and come back as they are, so that what is timed is the service and the wire. One
thread at a time.
"""

import os
import socket

import grpc

from kvtier.keys import KEY_SCHEME_VERSION, pack_hashes
from kvtier.session_line import FROM_SERVICE, Frames, LineFrame, Method, Outcome, pack
from kvtier.v1 import cache_pb2, cache_pb2_grpc
from storage.bench.restart_data import BLOCK_BYTES, NAMESPACE, hash_of

__all__ = ["CALL_SECONDS_MAX", "LineClient", "lookup_request", "open_session"]

CALL_SECONDS_MAX = 60.0

_BLOCK_TOKENS = 64


class LineClient:
    """The session's line."""

    def __init__(self, opened: cache_pb2.OpenSessionResponse) -> None:
        """`opened`: over shared memory. Raises OSError."""
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connection.settimeout(CALL_SECONDS_MAX)
        self._connection.connect(opened.arena.socket_path)
        self._connection.sendall(opened.arena.ticket)
        _, descriptors, _, _ = socket.recv_fds(self._connection, 1, 1)
        for descriptor in descriptors:
            os.close(descriptor)
        self._frames = Frames(FROM_SERVICE)

    def lookup(self, request: bytes) -> bytes:
        """The serialised answer. Raises OSError, SystemExit when it was refused."""
        self._connection.sendall(pack(LineFrame(1, Method.LOOKUP_PREFIX, request)))
        while not (frames := self._frames.feed(self._connection.recv(1 << 16))):
            pass
        if frames[0].kind != Outcome.ANSWER:
            raise SystemExit("a lookup over the line was refused")
        return frames[0].message

    def close(self) -> None:
        self._connection.close()


def open_session(channel: grpc.Channel, *, over_line: bool) -> cache_pb2.OpenSessionResponse:
    """A session of its own; sessions are shared by none. Raises grpc.RpcError."""
    return cache_pb2_grpc.CacheServiceStub(channel).OpenSession(
        cache_pb2.OpenSessionRequest(
            key_scheme_version=KEY_SCHEME_VERSION,
            client_name="bench-lookup",
            namespace_id=NAMESPACE,
            block_tokens=_BLOCK_TOKENS,
            block_bytes=BLOCK_BYTES,
            transport=(
                cache_pb2.TRANSPORT_SHARED_MEMORY if over_line else cache_pb2.TRANSPORT_STREAM
            ),
        ),
        timeout=CALL_SECONDS_MAX,
    )


def lookup_request(session_id: str, first: int, count: int) -> bytes:
    """A serialised lookup of keys side by side, as prefixes are."""
    return cache_pb2.LookupPrefixRequest(
        session_id=session_id,
        block_hashes=pack_hashes([hash_of(first + i) for i in range(count)]),
    ).SerializeToString()
