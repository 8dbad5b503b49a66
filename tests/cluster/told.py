"""What clients were told: answers held against each other, and what they used against the ledger.

Any thread. The same prompt has the same answer, from blocks as computed. A request whose client got
no answer may stand in the ledger or not, at most once; all others stand there exactly as they were
told.
"""

import json
import secrets
import threading
import time
from typing import Any

from tests.cluster.cluster import Cluster

__all__ = ["Told", "prompt"]

RUN = secrets.token_hex(4)
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
    """Usage by request, answers by prompt."""

    def __init__(self, cluster: Cluster) -> None:
        self._before = _count(cluster)
        self._lock = threading.Lock()
        self._requests: dict[str, list[int]] = {}
        self._checked: set[str] = set()
        self._untold = 0
        self._answers: dict[str, str] = {}
        self._wrong: list[tuple[str, str, str]] = []

    def request_count(self) -> tuple[int, int]:
        """How many the ledger has at least and at most, with those that were there before."""
        with self._lock:
            least = self._before + len(self._requests)
            return least, least + self._untold

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

    def compare(self, text: str, answer: str) -> None:
        """A prompt's answer, which has to be what it was before."""
        with self._lock:
            before = self._answers.setdefault(text, answer)
            if answer != before:
                self._wrong.append((text, before, answer))

    def prompts(self) -> list[str]:
        """Those with an answer, in the order of their first one."""
        with self._lock:
            return list(self._answers)

    def lost(self) -> None:
        """A request got no answer."""
        with self._lock:
            self._untold += 1

    def check(self, cluster: Cluster) -> None:
        """No answer was wrong; the ledger has all that was told, exactly, and holds. Raises
        AssertionError."""
        with self._lock:
            requests, untold, wrong = dict(self._requests), self._untold, list(self._wrong)
        assert not wrong
        deadline = time.monotonic() + DELIVERY_SECONDS_MAX
        while (count := _count(cluster) - self._before) < len(
            requests
        ) and time.monotonic() < deadline:
            time.sleep(1.0)
        new = {id_: tokens for id_, tokens in requests.items() if id_ not in self._checked}
        said = json.dumps(list(new))
        entries = json.loads(cluster.execute("billing", "python", "-c", ENTRIES, given=said))
        assert entries == {id_: [tokens] for id_, tokens in new.items()}
        assert len(requests) <= count <= len(requests) + untold
        assert cluster.ask("billing", "kvtier", "usage", "verify")["verified"]
        self._checked |= new.keys()

    def _note(self, request_id: str, tokens: list[int]) -> None:
        with self._lock:
            assert request_id not in self._requests
            self._requests[request_id] = tokens


def prompt(name: str) -> str:
    """Of some hundred tokens, which no other name begins with, nor one of another run."""
    return f"{RUN} {name}: " + " ".join(f"{name} says {number};" for number in range(120))


def _count(cluster: Cluster) -> int:
    """Of requests in the ledger."""
    totals = cluster.ask("billing", "kvtier", "usage", "report")["totals"]
    return sum(row["request_count"] for row in totals)
