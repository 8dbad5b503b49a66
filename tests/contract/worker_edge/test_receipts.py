"""Receipts of real requests: worker, cache service and billing as processes; a prompt that is
computed, then found in pages, in host memory and on the SSD; and what its owner finds out without
any of them.
"""

import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner

import billing.commands
import billing.receipt_commands
import worker.model_commands
from kvtier.v1 import inference_pb2 as pb
from kvtier.v1 import inference_pb2_grpc

pytestmark = pytest.mark.slow

MESSAGES = [
    {"role": "system", "content": "You answer from the document. " * 8},
    {"role": "user", "content": "What is in it? ☃"},
]


class Service:
    """A process of kvtier, started again at the address it had."""

    def __init__(self, module: str, *settings: str) -> None:
        self._module, self._settings = module, settings
        self.address = "127.0.0.1:0"

    async def start(self) -> None:
        settings = (*self._settings, f"listen={self.address}", "security.development=true")
        words = [word for each in settings for word in ("--set", each)]
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            self._module,
            *words,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        self.address = json.loads(await self._process.stdout.readline())["listen"]

    async def stop(self) -> None:
        self._process.terminate()
        assert await self._process.wait() == 0


async def ask(address: str, **changes: Any) -> pb.GenerateUsage:
    request = pb.GenerateRequest(
        tenant_id="acme",
        project_id="search",
        user_id="ann",
        chat=pb.ChatPrompt(messages=[pb.ChatMessage(**each) for each in MESSAGES]),
        max_completion_tokens=4,
        ignore_end_of_sequence=True,
    )
    request.MergeFrom(pb.GenerateRequest(**changes))
    async with grpc.aio.insecure_channel(
        address, options=(("grpc.use_local_subchannel_pool", 1),)
    ) as channel:
        usage = None
        async for response in inference_pb2_grpc.InferenceServiceStub(channel).Generate(request):
            if response.WhichOneof("event") == "usage":
                usage = response.usage
    assert usage is not None
    return usage


async def run(app: Any, *words: Any, status: int = 0) -> str:
    done = await asyncio.to_thread(CliRunner().invoke, app, [str(word) for word in words])
    assert done.exit_code == status, f"{words}\n{done.stdout}\n{done.stderr}\n{done.exception}"
    return str(done.stdout)


async def receipt(*words: Any, status: int = 0) -> str:
    return await run(billing.receipt_commands.app, *words, status=status)


async def recorded(address: str, request_id: str) -> None:
    """Waits until the event has arrived."""
    for _ in range(200):
        done = await asyncio.to_thread(
            CliRunner().invoke, billing.commands.app, ["show", request_id, "--address", address]
        )
        if done.exit_code == 0:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("the event did not arrive")


async def test_a_customer_proves_each_tier_from_the_files_alone(
    checkpoint: Path, tmp_path: Path
) -> None:
    sockets = tempfile.TemporaryDirectory(prefix="kvt-")
    till = Service("billing", f"data_directory={tmp_path / 'billing'}")
    cache = Service(
        "cache_service",
        f"data_directory={sockets.name}",
        "host.capacity_bytes=8MiB",
        "ssd.capacity_bytes=64MiB",
        "ssd.segment_bytes=4MiB",
    )
    await till.start()
    await cache.start()
    engine = Service(
        "worker",
        f"model={checkpoint}",
        f"data_directory={tmp_path / 'worker'}",
        f"billing.address={till.address}",
        f"cache.address={cache.address}",
        "tenants=acme,umbra",
        "pool.page_bytes=4MiB",
        "pool.block_tokens=16",
        "journal.proof_digests_max=768",
        "threads=1",
    )
    await engine.start()
    asked = {"computed": await ask(engine.address), "gpu": await ask(engine.address)}
    await engine.stop()
    await engine.start()
    asked["host"] = await ask(engine.address)
    await engine.stop()
    await cache.stop()
    await cache.start()
    await engine.start()
    asked["ssd"] = await ask(engine.address)

    files = tmp_path / "receipts"
    files.mkdir()
    public = tmp_path / "ledger.pem"
    await run(billing.commands.app, "key", "--out", public, "--address", till.address)
    for place, usage in asked.items():
        await recorded(till.address, usage.request_id)
        said = await receipt(
            "get", usage.request_id, "--tenant", "acme", "--out", files / f"{place}.json",
            "--address", till.address, "--worker", engine.address,
        )  # fmt: skip
        assert "position" in said
        assert "sealed" not in said
        await receipt("verify", files / f"{place}.json", "--ledger", till.address)
    # Another project, another user: another salt; the tenant's own receipt cannot be asked so.
    await receipt("get", usage.request_id, "--tenant", "umbra", "--address", till.address, status=1)
    for service in (engine, cache, till):
        await service.stop()
    sockets.cleanup()

    # From here on there is no service, only files.
    chat, prompt = tmp_path / "chat.json", tmp_path / "prompt.json"
    chat.write_text(json.dumps(MESSAGES))
    model = worker.model_commands.app
    await run(model, "tokens", checkpoint, "--messages", chat, "--out", prompt)
    ids = json.loads(prompt.read_text())["token_ids"]
    marks = set()
    for place, usage in asked.items():
        file = files / f"{place}.json"
        words = ("verify", file, "--tokens", prompt, "--public-key", public, "--json")
        found = json.loads(await receipt(*words))
        assert found["verified"], found
        assert {each["result"] for each in found["checks"]} == {"holds"}
        shown = json.loads(await receipt("show", file, "--json"))
        assert runs_of(shown) == expected(place, usage, len(ids))
        assert shown["prompt_tokens"] == len(ids) == usage.tokens.prompt_tokens
        marks.add(shown["namespace_mark"])
        await check_other_tokens(file, ids, tmp_path / "other.json")
    assert len(marks) == 1, "the same weights served all of them"

    sealed = tmp_path / "sealed.json"
    await receipt("seal", files / "ssd.json", "--out", sealed)
    await receipt("verify", sealed, "--public-key", public)
    await receipt("verify", sealed, "--tokens", prompt, status=1)
    texts = [file.read_bytes() for file in (sealed, *files.iterdir())]
    assert len({json.loads(text)["receipt"]["event"]["proof"]["commitment"] for text in texts}) == 4
    table = await receipt("show", files / "ssd.json", "--blocks")
    assert "The receipt" not in table
    assert " ssd " in table


def runs_of(shown: dict[str, Any]) -> list[tuple[str, int]]:
    return [
        (place, count) for run in shown["runs"] for place, count in run["blocks_by_place"].items()
    ]


def expected(place: str, usage: pb.GenerateUsage, tokens: int) -> list[tuple[str, int]]:
    """All blocks but the last from one place; a token is always computed."""
    blocks = -(-tokens // 16)
    if place == "computed":
        assert usage.tokens.hit_tokens == 0
        return [("computed", blocks)]
    hits = (tokens - 1) // 16
    assert getattr(usage.tokens.hit_tokens_by_tier, place) == hits * 16 == usage.tokens.hit_tokens
    return [(place, hits), ("computed", blocks - hits)]


async def check_other_tokens(file: Path, ids: Sequence[int], other: Path) -> None:
    for place in (0, 15, 16, len(ids) // 2, len(ids) - 1):
        changed = [*ids[:place], ids[place] ^ 1, *ids[place + 1 :]]
        other.write_text(json.dumps(changed))
        found = json.loads(await receipt("verify", file, "--tokens", other, "--json", status=1))
        (broken,) = [each for each in found["checks"] if each["result"] == "failed"]
        assert (broken["check"], broken["where"]) == ("tokens", f"block {place // 16}")


def test_a_chat_and_a_text_have_the_tokens_that_a_worker_gives_them(
    checkpoint: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text"
    text.write_text("naïve ☃", encoding="utf-8")
    done = CliRunner().invoke(
        worker.model_commands.app, ["tokens", str(checkpoint), "--text", str(text)]
    )
    assert json.loads(done.stdout)["token_ids"]
    for words in ((), ("--text", str(tmp_path / "none")), ("--messages", str(text))):
        done = CliRunner().invoke(worker.model_commands.app, ["tokens", str(checkpoint), *words])
        assert done.exit_code == 2
