"""One client process of the lookup benchmark.

    argv: address cached_blocks keys_per_call seed
    out:  "ready"       in: seconds (a line)       out: {"seconds", "cpu_seconds", "call_seconds"}

Requests are serialised before the clock starts and answers are not parsed while it runs, so what
is timed is the service and the wire. One thread; ends when standard input does.
"""

import itertools
import json
import random
import sys
import time
from collections.abc import Callable, Sequence

import grpc

from kvtier.keys import KEY_SCHEME_VERSION, pack_hashes
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
    address, cached_blocks, keys_per_call, seed = sys.argv[1], *map(int, sys.argv[2:])
    with grpc.insecure_channel(address, options=(("grpc.enable_http_proxy", 0),)) as channel:
        requests = _requests(channel, cached_blocks, keys_per_call, random.Random(seed))
        # No serialisers: bytes go out and come back as they are.
        call: Call = channel.unary_unary(_METHOD)
        for request in requests:
            found = cache_pb2.LookupPrefixResponse.FromString(
                call(request, timeout=_CALL_SECONDS_MAX)
            )
            if found.present_count != keys_per_call:
                raise SystemExit(f"only {found.present_count} of {keys_per_call} keys were found")
        print("ready", flush=True)
        for line in sys.stdin:
            print(json.dumps(_window(call, requests, float(line))), flush=True)


def _requests(
    channel: grpc.Channel, cached_blocks: int, keys_per_call: int, random: random.Random
) -> list[bytes]:
    """Of keys side by side, as prefixes are, from anywhere; sessions are shared by none."""
    opened = cache_pb2_grpc.CacheServiceStub(channel).OpenSession(
        cache_pb2.OpenSessionRequest(
            key_scheme_version=KEY_SCHEME_VERSION,
            client_name="bench-lookup",
            namespace_id=NAMESPACE,
            block_tokens=_BLOCK_TOKENS,
            block_bytes=BLOCK_BYTES,
            transport=cache_pb2.TRANSPORT_STREAM,
        ),
        timeout=_CALL_SECONDS_MAX,
    )
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
