"""What clients were told that their requests used, held against the ledger.

Any thread. A request whose client got no answer may stand in the ledger or not, at most once; all
others stand there exactly as they were told.
"""

import json
import threading
import time
from typing import Any

from tests.cluster.cluster import Cluster

__all__ = ["Told", "prompt"]

DELIVERY_SECONDS_MAX = 180.0

ENTRIES = """\
import json, sys, grpc
from kvtier.v1 import usage_pb2 as pb, usage_pb2_grpc
stub = usage_pb2_grpc.UsageServiceStub(grpc.insecure_channel("unix:/run/kvtier/billing.sock"))
found = {}
for id in json.load(sys.stdin):
    entries = stub.FindUsageEvents(pb.FindUsageEventsRequest(id=id), timeout=60).entries
    tokens = [entry.event.tokens for entry in entries]
    found[id] = [[t.hit_tokens, t.miss_tokens, t.completion_tokens] for t in tokens]
print(json.dumps(found))
"""


class Told:
    """Usage by request."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: dict[str, list[int]] = {}
        self._checked: set[str] = set()
        self._untold = 0

    @property
    def request_count(self) -> int:
        """Of those with an answer."""
        with self._lock:
            return len(self._requests)

    @property
    def untold_count(self) -> int:
        """Of those without one."""
        with self._lock:
            return self._untold

    def generate(self, cluster: Cluster, text: str, worker: str = "worker-1") -> dict[str, Any]:
        """One request from within a worker's container, to it; its usage."""
        reply = cluster.ask(worker, "kvtier", "generate", "--max-tokens", "8", text)
        usage: dict[str, Any] = reply["usage"]
        tokens = [usage[f"{name}_tokens"] for name in ("hit", "miss", "completion")]
        self._note(reply["request_id"], tokens)
        return usage

    def note(self, reply_id: str, usage: dict[str, Any]) -> int:
        """Of a reply in DeepSeek's shape; the hit tokens."""
        hit = int(usage["prompt_cache_hit_tokens"])
        tokens = [hit, usage["prompt_cache_miss_tokens"], usage["completion_tokens"]]
        self._note(reply_id.partition("-")[2], tokens)
        return hit

    def lost(self) -> None:
        """A request got no answer."""
        with self._lock:
            self._untold += 1

    def check(self, cluster: Cluster) -> None:
        """The ledger has all that was told, exactly, and holds. Raises AssertionError."""
        with self._lock:
            requests, untold = dict(self._requests), self._untold
        deadline = time.monotonic() + DELIVERY_SECONDS_MAX
        while (count := self._count(cluster)) < len(requests) and time.monotonic() < deadline:
            time.sleep(1.0)
        new = {id_: tokens for id_, tokens in requests.items() if id_ not in self._checked}
        said = json.dumps(list(new))
        entries = json.loads(cluster.execute("billing", "python", "-c", ENTRIES, given=said))
        assert entries == {id_: [tokens] for id_, tokens in new.items()}
        assert len(requests) <= count <= len(requests) + untold
        assert cluster.ask("billing", "kvtier", "usage", "verify")["verified"]
        self._checked |= new.keys()

    def _count(self, cluster: Cluster) -> int:
        totals = cluster.ask("billing", "kvtier", "usage", "report")["totals"]
        return sum(row["request_count"] for row in totals)

    def _note(self, request_id: str, tokens: list[int]) -> None:
        with self._lock:
            assert request_id not in self._requests
            self._requests[request_id] = tokens


def prompt(name: str) -> str:
    """Of some hundred tokens, which no other name begins with."""
    return f"{name}: " + " ".join(f"{name} says {number};" for number in range(120))
