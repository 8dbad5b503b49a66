"""One client process of the lookup benchmark.

    argv: address cached_blocks keys_per_call seed line|grpc
    out:  "ready"       in: seconds (a line)       out: {"seconds", "cpu_seconds", "call_seconds"}

Requests are serialised before the clock starts and answers are not parsed while it runs, so what
is timed is the service and the wire. One thread; ends when standard input does.
"""

import itertools
import json
import os
import random
import socket
import sys
import time
from collections.abc import Callable, Sequence

import grpc

from kvtier.keys import KEY_SCHEME_VERSION, pack_hashes
from kvtier.session_line import FROM_SERVICE, Frames, LineFrame, Method, Outcome, pack
from kvtier.v1 import cache_pb2, cache_pb2_grpc
from storage.bench.restart_data import BLOCK_BYTES, NAMESPACE, hash_of

__all__ = ["main"]

Call = Callable[..., bytes]

_METHOD = "/kvtier.v1.CacheService/LookupPrefix"
_BLOCK_TOKENS = 64
_REQUESTS_KEYS_MAX = 131_072
_REQUESTS_MAX = 128
_CALL_SECONDS_MAX = 60.0


def main() -> None:
    """Entry of the process."""
    address, cached_blocks, keys_per_call, seed = sys.argv[1], *map(int, sys.argv[2:5])
    over_line = sys.argv[5] == "line"
    with grpc.insecure_channel(address, options=(("grpc.enable_http_proxy", 0),)) as channel:
        opened = _open(channel, over_line)
        requests = _requests(opened, cached_blocks, keys_per_call, random.Random(seed))
        # No serialisers: bytes go out and come back as they are.
        call: Call = _Line(opened) if over_line else channel.unary_unary(_METHOD)
        for request in requests:
            found = cache_pb2.LookupPrefixResponse.FromString(
                call(request, timeout=_CALL_SECONDS_MAX)
            )
            if found.present_count != keys_per_call:
                raise SystemExit(f"only {found.present_count} of {keys_per_call} keys were found")
        print("ready", flush=True)
        for line in sys.stdin:
            print(json.dumps(_window(call, requests, float(line))), flush=True)


class _Line:
    """The session's line, one call at a time."""

    def __init__(self, opened: cache_pb2.OpenSessionResponse) -> None:
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connection.settimeout(_CALL_SECONDS_MAX)
        self._connection.connect(opened.arena.socket_path)
        self._connection.sendall(opened.arena.ticket)
        _, descriptors, _, _ = socket.recv_fds(self._connection, 1, 1)
        for descriptor in descriptors:
            os.close(descriptor)
        self._frames = Frames(FROM_SERVICE)

    def __call__(self, request: bytes, timeout: float) -> bytes:
        self._connection.sendall(pack(LineFrame(1, Method.LOOKUP_PREFIX, request)))
        while not (frames := self._frames.feed(self._connection.recv(1 << 16))):
            pass
        if frames[0].kind != Outcome.ANSWER:
            raise SystemExit("a lookup over the line was refused")
        return frames[0].message


def _open(channel: grpc.Channel, over_line: bool) -> cache_pb2.OpenSessionResponse:
    """A session of its own; sessions are shared by none."""
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
        timeout=_CALL_SECONDS_MAX,
    )


def _requests(
    opened: cache_pb2.OpenSessionResponse,
    cached_blocks: int,
    keys_per_call: int,
    random: random.Random,
) -> list[bytes]:
    """Of keys side by side, as prefixes are, from anywhere."""
    count = max(1, min(_REQUESTS_MAX, _REQUESTS_KEYS_MAX // keys_per_call))
    starts = [random.randint(0, cached_blocks - keys_per_call) for _ in range(count)]
    return [
        cache_pb2.LookupPrefixRequest(
            session_id=opened.session_id,
            block_hashes=pack_hashes([hash_of(start + i) for i in range(keys_per_call)]),
        ).SerializeToString()
        for start in starts
    ]


def _window(call: Call, requests: Sequence[bytes], seconds: float) -> dict[str, object]:
    took = []
    cpu, began = time.process_time(), time.perf_counter()
    before = began
    for request in itertools.cycle(requests):
        call(request, timeout=_CALL_SECONDS_MAX)
        now = time.perf_counter()
        took.append(now - before)
        before = now
        if now - began >= seconds:
            break
    return {
        "seconds": before - began,
        "cpu_seconds": time.process_time() - cpu,
        "call_seconds": took,
    }


if __name__ == "__main__":
    main()
