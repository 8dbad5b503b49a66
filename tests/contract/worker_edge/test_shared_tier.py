"""A conversation that moves between workers hits through the shared tier."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from kvtier.v1 import inference_pb2 as pb

BLOCK_TOKENS = 16

TURNS = (90, 200, 330, 470, 640, 800)
"""Prompt tokens of each turn, about."""


def prompt(length: int) -> str:
    return "".join(chr(97 + (at * 7 + at // 11) % 26) for at in range(length))


async def turn(stub: Any, length: int) -> tuple[pb.GenerateUsage, list[int]]:
    """Greedy."""
    request = pb.GenerateRequest(
        tenant_id="acme", text=prompt(length), max_completion_tokens=4, ignore_end_of_sequence=True
    )
    replies = [reply async for reply in stub.Generate(request)]
    tokens = [token for reply in replies for token in reply.delta.token_ids]
    assert len(tokens) == 4
    return replies[-1].usage, tokens


async def settled(server: Any, block_count: int) -> None:
    """So many blocks are stored there, and what waited for the shared tier is written."""
    async with asyncio.timeout(60):
        while (
            server.cache.stats().tiers[0].block_count < block_count
            or server.cache.shared.writer.pending_count
        ):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("sealing", ["off", "aes_256_gcm"])
async def test_a_conversation_that_moves_hits_like_one_that_stays(
    start_cache: Any, start: Any, secret: Path, tmp_path: Path, sealing: str
) -> None:
    key = tmp_path / "shared-key"
    key.write_bytes(bytes(range(32)))
    key.chmod(0o600)
    shared = {
        "url": f"file://{tmp_path}/mount",
        "sealing": sealing,
        "key_file": key if sealing != "off" else None,
        # A busy machine must not make this a test of speed.
        "find_timeout_seconds": 30,
        "request_timeout_seconds": 30,
    }
    caches = [await start_cache(shared=shared), await start_cache(shared=shared)]
    alone = await start_cache()
    stubs = []
    for number, cache in enumerate((*caches, alone)):
        _, stub = await start(
            f"data_directory={tmp_path / f'worker-{number}'}",
            f"cache.address={cache.listen}",
            f"scope_secret_file={secret}",
        )
        stubs.append(stub)
    moved = stayed = 0
    for number, length in enumerate(TURNS):
        here, tokens = await turn(stubs[number % 2], length)
        there, same = await turn(stubs[2], length)
        assert tokens == same
        assert here.tokens.hit_tokens == sum(
            getattr(here.tokens.hit_tokens_by_tier, tier)
            for tier in ("gpu", "host", "ssd", "shared")
        )
        moved += here.tokens.hit_tokens
        stayed += there.tokens.hit_tokens
        assert not number or here.tokens.hit_tokens_by_tier.shared > 0, number
        await settled(caches[number % 2], here.tokens.prompt_tokens // BLOCK_TOKENS)
    assert stayed > 1000
    assert moved >= 0.95 * stayed
