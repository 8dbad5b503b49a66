"""One client process of the lookup benchmark.

    argv: address cached_blocks keys_per_call seed line|grpc
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
from typing import Any

import grpc

from cache_service.bench.line_client import (
    CALL_SECONDS_MAX,
    LineClient,
    lookup_request,
    open_session,
)
from kvtier.v1 import cache_pb2

__all__ = ["main"]

Call = Callable[[bytes], bytes]

_METHOD = "/kvtier.v1.CacheService/LookupPrefix"
_REQUESTS_KEYS_MAX = 131_072
_REQUESTS_MAX = 128


def main() -> None:
    """Entry of the process."""
    address, cached_blocks, keys_per_call, seed = sys.argv[1], *map(int, sys.argv[2:5])
    over_line = sys.argv[5] == "line"
    with grpc.insecure_channel(address, options=(("grpc.enable_http_proxy", 0),)) as channel:
        opened = open_session(channel, over_line=over_line)
        requests = _requests(opened, cached_blocks, keys_per_call, random.Random(seed))
        call: Call = LineClient(opened).lookup if over_line else _over_grpc(channel)
        for request in requests:
            found = cache_pb2.LookupPrefixResponse.FromString(call(request))
            if found.present_count != keys_per_call:
                raise SystemExit(f"only {found.present_count} of {keys_per_call} keys were found")
        print("ready", flush=True)
        for line in sys.stdin:
            print(json.dumps(_window(call, requests, float(line))), flush=True)


def _over_grpc(channel: grpc.Channel) -> Call:
    """Without serialisers: bytes go out and come back as they are."""
    call: Any = channel.unary_unary(_METHOD)
    return lambda request: call(request, timeout=CALL_SECONDS_MAX)


def _requests(
    opened: cache_pb2.OpenSessionResponse,
    cached_blocks: int,
    keys_per_call: int,
    random: random.Random,
) -> list[bytes]:
    """Of keys side by side, as prefixes are, from anywhere."""
    count = max(1, min(_REQUESTS_MAX, _REQUESTS_KEYS_MAX // keys_per_call))
    starts = [random.randint(0, cached_blocks - keys_per_call) for _ in range(count)]
    return [lookup_request(opened.session_id, start, keys_per_call) for start in starts]


def _window(call: Call, requests: Sequence[bytes], seconds: float) -> dict[str, object]:
    took = []
    cpu, began = time.process_time(), time.perf_counter()
    before = began
    for request in itertools.cycle(requests):
        call(request)
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
