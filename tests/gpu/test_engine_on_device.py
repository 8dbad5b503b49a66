"""A whole engine, its pages where the model is: what it stores comes back, and says the same."""

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import torch

from kvtier.blocks import MissReason, Tier
from kvtier.keys import PUBLIC_SCOPE, BlockHash
from tests.page_kinds import contents, land
from tests.tiny_models import COMMON, save_tiny
from worker.cache_port import RestoreResult, StoreResult
from worker.engine import Engine, EngineSettings
from worker.landing import Landing, Source
from worker.model_loader import LoadedModel, load_model
from worker.requests import EngineRequest, RequestEnded, RequestId, TokenEvent

NEW = 24
PROMPTS = [list(range(3 + n, 60 + 7 * n)) for n in range(5)]


class DictCache:
    """A cache service in a dict."""

    def __init__(self) -> None:
        self.blocks: dict[BlockHash, bytes] = {}

    def restore(
        self, request_id: str, chain: Sequence[BlockHash], pages: Landing, *rest: Any
    ) -> RestoreResult:
        known = list(takewhile(self.blocks.__contains__, chain))
        land(pages, [self.blocks[block] for block in known])
        reason = MissReason.NONE if len(known) == len(chain) else MissReason.NEVER_STORED
        return RestoreResult((Tier.HOST,) * len(known), reason)

    def store(
        self, request_id: str, chain: Sequence[BlockHash], pages: Source, hints: Any
    ) -> StoreResult:
        self.blocks.update(zip(chain, contents(pages), strict=True))
        return StoreResult(len(chain), 0, 0)

    def connected(self) -> bool:
        return True

    def close(self) -> Any:
        return None


def answers(loaded: LoadedModel, cache: DictCache) -> tuple[list[list[int]], int]:
    """Tokens of each prompt, all asked together; and how many tokens were restored."""
    engine = Engine(loaded, EngineSettings(page_count=64, step_tokens=64), cache, load_threads=2)
    told: list[list[Any]] = [[] for _ in PROMPTS]
    for n, prompt in enumerate(PROMPTS):
        request = EngineRequest(RequestId(f"r{n}"), tuple(prompt), NEW, PUBLIC_SCOPE)
        engine.submit(request, told[n].append)
    while not all(events and isinstance(events[-1], RequestEnded) for events in told):
        engine.step() or engine.wait(0.05)
        engine.check_integrity()
    for _ in range(200):  # stores that are under way
        if engine.stats().free_page_count + engine.stats().cached_page_count == 64:
            break
        engine.wait(0.05)
        engine.step()
    engine.stop()
    tokens = [[e.token_id for e in events if isinstance(e, TokenEvent)] for events in told]
    return tokens, sum(events[-1].usage.hit_tokens for events in told)


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
            ],
        ),
    ],
)
def test_an_answer_is_the_plain_models_cold_and_restored(device: str, tmp_path: Path) -> None:
    plain = save_tiny(tmp_path, "llama", COMMON)
    loaded = load_model(tmp_path, block_tokens=16, device=device)
    cache = DictCache()
    cold, none = answers(loaded, cache)
    warm, restored = answers(loaded, cache)
    assert (none, restored) == (0, sum((len(prompt) - 1) // 16 * 16 for prompt in PROMPTS))
    assert warm == cold
    for prompt, tokens in zip(PROMPTS, cold, strict=True):
        with torch.inference_mode():
            logits = plain(torch.tensor([[*prompt, *tokens[:-1]]])).logits[0, len(prompt) - 1 :]
        assert tokens == logits.argmax(-1).tolist()
