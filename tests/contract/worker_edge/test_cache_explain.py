"""`kvtier cache explain PROMPT`: a real worker names it, a real cache service explains it."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from cache_service.server import CacheServer
from cache_service.settings import CacheSettings
from kvtier.v1 import block_pb2, inference_pb2

ROOT = Path(__file__).parents[3]
PROMPT = "the harbour pilots write down what they see, day after day and night after night"
PRICES = ROOT / "billing" / "default_prices.toml"


@pytest.fixture
async def cache_server() -> Any:
    with tempfile.TemporaryDirectory(prefix="kvt-") as directory:
        server = CacheServer(
            CacheSettings.model_validate(
                {
                    "listen": "127.0.0.1:0",
                    "security": {"development": True},
                    "data_directory": directory,
                    "host": {"capacity_bytes": "32MiB"},
                    "ssd": {"enabled": False},
                }
            )
        )
        await server.start()
        yield server
        await server.stop()


def two_workers(cache: CacheServer) -> tuple[list[str], list[str]]:
    """Settings of two that name prompts alike and have pages of their own."""
    secret = Path(cache._settings.data_directory) / "scope_secret"
    secret.write_bytes(bytes(range(32)))
    secret.chmod(0o600)
    one = [f"cache.address={cache.listen}", f"scope_secret_file={secret}"]
    return one, [*one, f"data_directory={secret.parent / 'other'}"]


async def cli(cache: str, worker: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from kvtier.cli.main import main; main()", "cache", "explain"]
    options = ["--address", cache, "--worker", worker, "--tenant", "acme"]
    return await asyncio.to_thread(
        subprocess.run,
        [*command, *words, *options],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}", "COLUMNS": "200"},
        check=False,
    )


async def generate(stub: Any, text: str) -> Any:
    request = inference_pb2.GenerateRequest(tenant_id="acme", text=text, max_completion_tokens=1)
    usage = None
    async for response in stub.Generate(request, timeout=60):
        if response.HasField("usage"):
            usage = response.usage
    return usage


async def test_a_prompt_is_explained_as_it_then_goes(cache_server: Any, start: Any) -> None:
    running, stub = await start(f"cache.address={cache_server.listen}")

    async def said(*words: str) -> dict[str, Any]:
        printed = await cli(cache_server.listen, running.listen, "--raw", "--json", *words)
        assert (printed.returncode, printed.stderr) == (0, "")
        data: dict[str, Any] = json.loads(printed.stdout)
        return data

    cold = await said(PROMPT)
    assert (cold["hit_tokens"], cold["miss_reason"]) == (0, "never_stored")
    assert cold["prompt_tokens"] == cold["miss_tokens"] == len(PROMPT)
    assert cold["cost"] is None
    await generate(stub, PROMPT)
    warm = await said(PROMPT + "!", "--prices", str(PRICES))
    assert warm["hit_tokens_by_tier"]["gpu"] == warm["hit_tokens"] == len(PROMPT) // 16 * 16
    assert warm["miss_reason"] == ""
    assert float(warm["cost"]["saved"]) > 0
    usage = await generate(stub, PROMPT + "!")
    assert usage.tokens.hit_tokens == warm["hit_tokens"]


async def test_another_worker_hits_what_the_first_one_stored(cache_server: Any, start: Any) -> None:
    one, another = two_workers(cache_server)
    _, stub = await start(*one)
    await generate(stub, PROMPT)
    other, _ = await start(*another)
    fork = PROMPT[:48] + "and then the chain goes another way"
    for _ in range(20):  # until the offer to the cache has been made
        printed = await cli(cache_server.listen, other.listen, "--raw", fork)
        if "\n0 of" not in printed.stdout:
            break
        assert "never_stored" in printed.stdout, printed
    assert "host memory" in printed.stdout
    assert "48 of 83 tokens would be hits (58%)." in printed.stdout
    assert "Block 3 (from token 48 on" in printed.stdout
    assert "One goes on differently from block 3 on; nearest is" in printed.stdout


async def test_a_prompt_of_another_scope_is_explained_by_it_and_a_foreign_one_is_not(
    cache_server: Any, start: Any
) -> None:
    one, another = two_workers(cache_server)
    _, stub = await start(*one)
    running, _ = await start(*another)
    request = inference_pb2.GenerateRequest(
        tenant_id="umbra", text=PROMPT + " and this is umbra's alone", max_completion_tokens=1
    )
    async for _ in stub.Generate(request, timeout=60):
        pass
    await generate(stub, PROMPT)
    ann = ("--project", "search", "--user", "ann", "--cache-scope", "user")

    async def said(*words: str) -> dict[str, Any]:
        printed = await cli(cache_server.listen, running.listen, "--raw", *words, "--json")
        assert (printed.returncode, printed.stderr) == (0, "")
        data: dict[str, Any] = json.loads(printed.stdout)
        return data

    blocks = len(PROMPT) // 16
    for _ in range(20):  # until the offers to the cache have been made
        data = await said(PROMPT + " and more", *ann)
        if data["miss_reason"] != "never_stored":
            break
    assert (data["hit_tokens"], data["miss_reason"]) == (0, "other_scope")
    assert data["other_scope"] == {
        "scope_path": "acme",
        "block_count": blocks,
        "tokens": blocks * 16,
    }
    printed = await cli(cache_server.listen, running.listen, "--raw", PROMPT + " and more", *ann)
    assert f"{blocks * 16} tokens of the same text ({blocks} blocks) are cached" in printed.stdout
    assert "in the scope acme, which this request does not read." in printed.stdout
    # What umbra has of it is longer, and told to nobody who does not ask as umbra.
    data = await said(PROMPT + " and this is umbra's alone", *ann)
    assert data["other_scope"]["block_count"] == blocks


async def test_with_prefix_units_it_says_what_then_hits(cache_server: Any, start: Any) -> None:
    units = "cache.prefix_unit=deepseek"
    one, another = two_workers(cache_server)
    _, stub = await start(*one, units)
    other, cold = await start(*another, units)
    await generate(stub, PROMPT)
    fork = PROMPT[:56] + "and then the chain goes another way"

    async def said(worker: Any) -> dict[str, Any]:
        printed = await cli(cache_server.listen, worker.listen, "--raw", fork, "--json")
        data: dict[str, Any] = json.loads(printed.stdout)
        return data

    for _ in range(20):  # until the offer to the cache has been made
        data = await said(other)
        if data["miss_reason"] != "never_stored":
            break
    assert (data["hit_tokens"], data["stored_tokens"]) == (0, 48)
    assert data["miss_reason"] == "within_unit"
    assert data["divergence"]["block_index"] == 3
    printed = await cli(cache_server.listen, other.listen, "--raw", fork)
    assert "is no hit (within_unit): 3 blocks more are there, and no prefix unit" in printed.stdout
    usage = await generate(cold, fork)
    assert (usage.tokens.hit_tokens, usage.miss_reason) == (0, block_pb2.MISS_REASON_WITHIN_UNIT)
    # Where the two part, a unit has ended since.
    assert (await said(other))["hit_tokens"] == 80, "its own input"


async def test_what_cannot_be_explained_is_one_clear_line(cache_server: Any, start: Any) -> None:
    running, _ = await start("cache.address=")
    for cache, worker, words, status, reason in (
        (cache_server.listen, "127.0.0.1:1", (PROMPT,), 1, "WORKER_UNREACHABLE"),
        ("127.0.0.1:1", running.listen, (PROMPT,), 1, "CACHE_UNREACHABLE"),
        (cache_server.listen, running.listen, (PROMPT, "--user", "ann"), 1, "INVALID_SCOPE"),
        (cache_server.listen, running.listen, (PROMPT, "--prices", "/nowhere"), 2, "/nowhere"),
        (cache_server.listen, running.listen, (PROMPT, "--raw", "--system", "x"), 2, "--raw"),
        (cache_server.listen, running.listen, (PROMPT, "--request", "x"), 2, "--request"),
    ):
        failed = await cli(cache, worker, *words)
        assert (failed.returncode, failed.stdout) == (status, ""), failed
        assert failed.stderr.count("\n") == 1
        assert reason in failed.stderr


async def test_a_prompt_of_an_adapter_is_explained_in_its_own_blocks(
    cache_server: Any, start: Any, save_adapter: Any
) -> None:
    mine = f"adapters=poet={save_adapter('poet')}"
    running, stub = await start(f"cache.address={cache_server.listen}", mine)

    async def hit(*words: str) -> int:
        printed = await cli(cache_server.listen, running.listen, "--raw", "--json", PROMPT, *words)
        assert (printed.returncode, printed.stderr) == (0, "")
        data = json.loads(printed.stdout)
        assert data["prompt_tokens"] == len(PROMPT)
        return data["hit_tokens"]  # type: ignore[no-any-return]

    request = inference_pb2.GenerateRequest(
        tenant_id="acme", text=PROMPT, max_completion_tokens=1, adapter="poet"
    )
    assert [response async for response in stub.Generate(request)]
    assert await hit() == 0
    assert await hit("--adapter", "poet") == (len(PROMPT) - 1) // 16 * 16
    refused = await cli(cache_server.listen, running.listen, PROMPT, "--adapter", "bard")
    assert refused.returncode == 1
    assert "ADAPTER_UNKNOWN" in refused.stderr
