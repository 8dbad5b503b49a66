"""Two workers of one cache service, as processes: requests go where their prefix is, learned from
events; a worker that is killed is done without."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from kvtier.cli.processes import ServiceProcess, start_service
from tests.contract.gateway_edge.conftest import MODEL, Stack

pytestmark = pytest.mark.slow


class Pair:
    """The stack's own worker and another, behind a gateway that follows their caches' events."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        cache = stack.cluster.cache
        assert cache is not None
        self.second: ServiceProcess = start_service(
            "worker",
            {
                "listen": "127.0.0.1:0",
                "model": stack.directory / MODEL,
                "data_directory": stack.directory / "second",
                "scope_secret_file": stack.directory / "worker" / "scope_secret",
                "cache.address": cache.address,
                "billing.address": stack.billing,
                "tenants": "acme,umbra",
                "threads": 1,
                "node": "node-2",
            },
            stack.directory / "logs" / "second.log",
        )
        workers = (stack.worker, self.second.address)
        self.gateway = stack.start_gateway(
            workers=",".join(workers),
            caches=",".join(f"{worker}={cache.address}" for worker in workers),
        )
        self.url = f"http://{self.gateway.address}/v1"

    def ask(self, text: str, **said: Any) -> Any:
        with openai.OpenAI(api_key=self.stack.key(), base_url=self.url, max_retries=0) as client:
            return client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": text}], max_tokens=2, **said
            )

    def node_of(self, reply: Any) -> str:
        return self.stack.event_of(reply.id).node

    def stop(self) -> None:
        self.gateway.stop()
        self.second.stop()


@pytest.fixture(scope="module")
def pair(stack: Stack) -> Iterator[Pair]:
    running = Pair(stack)
    yield running
    running.stop()


def test_a_prefix_is_asked_where_it_is_and_different_ones_spread(pair: Pair) -> None:
    first: dict[str, str] = {}
    for name in ("alpha ", "beta ", "gamma ", "delta "):
        reply = pair.ask(name * 400)
        first[name] = pair.node_of(reply)
        for _ in range(2):
            again = pair.ask(name * 400)
            assert pair.node_of(again) == first[name]
            assert again.usage.prompt_cache_hit_tokens > 0


def test_a_worker_that_is_killed_is_done_without(pair: Pair) -> None:
    texts = [f"text {number} of several " * 60 for number in range(8)]
    with ThreadPoolExecutor(len(texts)) as pool:  # one alone would go to whoever is the faster
        homes = {pair.node_of(reply) for reply in pool.map(pair.ask, texts)}
    assert homes == {"node-1", "node-2"}
    pair.second.kill()
    replies = [pair.ask(text) for text in (*texts, *texts)]
    assert {pair.node_of(reply) for reply in replies} == {"node-1"}
    assert all(reply.usage.prompt_cache_hit_tokens > 0 for reply in replies[len(texts) :])
