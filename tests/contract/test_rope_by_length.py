"""RoPE whose frequencies depend on a request's length: no block depends on what comes after it.

Transformers takes the frequencies of all of a forward's tokens from its largest position, so what
a short request gets must not be decided by a long one beside it, nor a block's KV by the tokens
behind it. Compared with the unmodified model that computes each request alone.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from kvtier.keys import PUBLIC_SCOPE
from tests.tiny_models import (
    BLOCK_TOKENS,
    COMMON,
    LOGIT_TOLERANCE,
    BytesCache,
    plain_logits,
    save_tiny,
)
from worker.engine import Engine, EngineSettings
from worker.errors import ArchitectureRefusedError, PromptTooLongError
from worker.kv_pages import KvPages, PageId
from worker.model_loader import LoadedModel, load_model
from worker.model_runner import ModelRunner, Span
from worker.requests import EngineRequest, RequestEnded, RequestId, TokenEvent

ORIGINAL = 128
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
    "original_max_position_embeddings": ORIGINAL,
}
TWO_REGIMES: dict[str, dict[str, Any]] = {
    "phi3": {
        **COMMON,
        "original_max_position_embeddings": ORIGINAL,
        "rope_parameters": LONGROPE,
    },
    "phimoe": {
        **COMMON,
        "num_local_experts": 4,
        "original_max_position_embeddings": ORIGINAL,
        "rope_parameters": {**LONGROPE, "short_mscale": 1.1, "long_mscale": 1.6},
    },
}
ONE_REGIME: dict[str, tuple[int, dict[str, Any]]] = {
    "dynamic": (ORIGINAL, {"rope_type": "dynamic", "factor": 4.0}),
    "linear": (512, {"rope_type": "linear", "factor": 4.0}),
    "yarn": (
        512,
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL},
    ),
    "llama3": (
        512,
        {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": ORIGINAL,
        },
    ),
}
SHORT, MIDDLE, LONG = 40, 120, 300


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def tokens(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    drawn: list[int] = torch.randint(3, 500, (count,), generator=generator).tolist()
    return drawn


class Pages:
    """Computes spans of several sequences, each in its own pages."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.kv = KvPages(loaded.layout, 64, torch.device("cpu"))
        self.runner = ModelRunner(loaded.model, self.kv)

    def span(self, known: list[int], start: int, end: int, first_page: int) -> Span:
        pages = [PageId(first_page + index) for index in range(-(-end // BLOCK_TOKENS))]
        return Span(known[start:end], start, pages, end - start)

    def whole(self, known: list[int], first_page: int) -> torch.Tensor:
        cuts = [*range(0, len(known), 64), len(known)]
        return torch.cat(
            [
                self.runner.run([self.span(known, start, end, first_page)])
                for start, end in pairwise(cuts)
            ]
        )

    def bytes_of(self, first_page: int, count: int) -> torch.Tensor:
        pages = [PageId(first_page + index) for index in range(count)]
        return torch.stack(
            [torch.from_numpy(page).view(torch.float32) for page in self.kv.source(pages)]
        )


def off(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())


def run_engine(loaded: LoadedModel, cache: BytesCache, asked: list[list[int]]) -> list[Any]:
    """Generated tokens and hit tokens of each prompt, all computed beside each other."""
    settings = EngineSettings(page_count=64, step_tokens=48)
    engine = Engine(loaded, settings, cache, load_threads=0)
    events: list[list[Any]] = []
    for number, prompt in enumerate(asked):
        events.append([])
        request = EngineRequest(RequestId(f"r{number}"), tuple(prompt), 4, PUBLIC_SCOPE)
        engine.submit(request, events[-1].append)
    while engine.step():
        engine.check_integrity()
    engine.stop()
    outcomes = []
    for seen in events:
        assert isinstance(seen[-1], RequestEnded)
        made = [event.token_id for event in seen if isinstance(event, TokenEvent)]
        outcomes.append((made, seen[-1].usage.hit_tokens))
    return outcomes


def plain_tokens(plain: Any, prompt: list[int]) -> list[int]:
    known = list(prompt)
    for _ in range(4):
        known.append(int(plain_logits(plain, known)[-1].argmax()))
    return known[len(prompt) :]


@pytest.mark.parametrize("kind", TWO_REGIMES)
def test_without_a_choice_the_context_ends_where_the_first_regime_does(
    kind: str, tmp_path: Path
) -> None:
    plain = save_tiny(tmp_path, kind, TWO_REGIMES[kind])
    loaded = load_model(tmp_path, block_tokens=BLOCK_TOKENS)
    assert loaded.context_tokens == ORIGINAL
    pages, long, short = Pages(loaded), tokens(ORIGINAL, 1), tokens(SHORT, 2)
    assert off(pages.whole(long, 0), plain_logits(plain, long)) < LOGIT_TOLERANCE
    beside = [pages.span(long, 120, ORIGINAL, 0), pages.span(short, 0, SHORT, 10)]
    expected = torch.cat([plain_logits(plain, long)[120:], plain_logits(plain, short)])
    assert off(pages.runner.run(beside), expected) < LOGIT_TOLERANCE

    cache, asked = BytesCache(), [tokens(MIDDLE, 3), tokens(SHORT, 4), tokens(ORIGINAL - 4, 5)]
    wanted = [plain_tokens(plain, prompt) for prompt in asked]
    cold, warm = run_engine(loaded, cache, asked), run_engine(loaded, cache, asked)
    assert [made for made, _ in cold] == [made for made, _ in warm] == wanted
    assert [hit for _, hit in warm] == [112, 32, 112]


@pytest.mark.parametrize("kind", TWO_REGIMES)
def test_pinned_regime_is_the_plain_models_for_long_requests_whoever_is_beside_them(
    kind: str, tmp_path: Path
) -> None:
    plain = save_tiny(tmp_path, kind, TWO_REGIMES[kind])
    loaded = load_model(tmp_path, block_tokens=BLOCK_TOKENS, rope_regime="long")
    assert loaded.context_tokens == 512
    pages, long, short = Pages(loaded), tokens(LONG, 1), tokens(SHORT, 2)
    expected = plain_logits(plain, long)
    assert off(pages.whole(long, 0), expected) < LOGIT_TOLERANCE

    alone = pages.whole(short, 20)
    both = pages.runner.run([pages.span(long, 288, LONG, 0), pages.span(short, 0, SHORT, 24)])
    assert off(both[:12], expected[288:]) < LOGIT_TOLERANCE
    assert off(both[12:], alone) < LOGIT_TOLERANCE
    # The two regimes do differ here, or nothing above would have been shown.
    assert off(alone, plain_logits(plain, short)) > 0.01

    cache, asked = BytesCache(), [tokens(LONG, 3), tokens(LONG, 3)[:150], tokens(LONG, 4)]
    wanted = [plain_tokens(plain, prompt) for prompt in asked]
    cold, warm = run_engine(loaded, cache, asked), run_engine(loaded, cache, asked)
    assert [made for made, _ in cold] == [made for made, _ in warm] == wanted
    assert [hit for _, hit in warm] == [288, 144, 288]


@pytest.mark.parametrize("kind", TWO_REGIMES)
@pytest.mark.parametrize("regime", ["short", "long"])
def test_kv_of_a_block_depends_on_its_prefix_alone(kind: str, regime: str, tmp_path: Path) -> None:
    save_tiny(tmp_path, kind, TWO_REGIMES[kind])
    loaded = load_model(tmp_path, block_tokens=BLOCK_TOKENS, rope_regime=regime)
    pages, long = Pages(loaded), tokens(loaded.context_tokens, 1)
    pages.whole(long[:48], 0)
    pages.whole(long, 8)
    # A third time as tokens that another request's last position goes along with.
    far = pages.span(long, loaded.context_tokens - 1, loaded.context_tokens, 8)
    pages.runner.run([far, pages.span(long, 0, 48, 4)])
    first = pages.bytes_of(0, 3)
    assert off(pages.bytes_of(8, 3), first) < LOGIT_TOLERANCE
    assert off(pages.bytes_of(4, 3), first) < LOGIT_TOLERANCE


def test_blocks_of_two_regimes_have_different_names(tmp_path: Path) -> None:
    save_tiny(tmp_path, "phi3", TWO_REGIMES["phi3"])
    short = load_model(tmp_path, block_tokens=BLOCK_TOKENS)
    long = load_model(tmp_path, block_tokens=BLOCK_TOKENS, rope_regime="long")
    assert short.namespace.id != long.namespace.id
    assert short.namespace.weights == long.namespace.weights


@pytest.mark.parametrize("rope", ONE_REGIME)
def test_rope_of_one_regime_is_the_plain_models_up_to_the_context(
    rope: str, tmp_path: Path
) -> None:
    context, parameters = ONE_REGIME[rope]
    settings = {
        **COMMON,
        "max_position_embeddings": context,
        "rope_parameters": {"rope_theta": 10000.0, **parameters},
    }
    plain = save_tiny(tmp_path, "llama", settings)
    loaded = load_model(tmp_path, block_tokens=BLOCK_TOKENS)
    assert loaded.context_tokens == context
    pages, long, short = Pages(loaded), tokens(min(context, LONG), 1), tokens(SHORT, 2)
    expected = plain_logits(plain, long)
    assert off(pages.whole(long, 0), expected) < LOGIT_TOLERANCE
    last = pages.span(long, len(long) - 8, len(long), 0)
    both = pages.runner.run([last, pages.span(short, 0, SHORT, 24)])
    wanted = torch.cat([expected[-8:], plain_logits(plain, short)])
    assert off(both, wanted) < LOGIT_TOLERANCE


def test_engine_takes_nothing_past_the_context(tmp_path: Path) -> None:
    save_tiny(tmp_path, "phi3", TWO_REGIMES["phi3"])
    engine = Engine(
        load_model(tmp_path, block_tokens=BLOCK_TOKENS), EngineSettings(page_count=64), None
    )
    fits = EngineRequest(RequestId("fits"), tuple(tokens(ORIGINAL - 4, 1)), 4, PUBLIC_SCOPE)
    engine.submit(fits, lambda event: None)
    passes = EngineRequest(RequestId("passes"), tuple(tokens(ORIGINAL - 4, 1)), 5, PUBLIC_SCOPE)
    with pytest.raises(PromptTooLongError, match="context of 128"):
        engine.submit(passes, lambda event: None)
    engine.stop()


def test_regime_that_a_checkpoint_does_not_have_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path, "llama", COMMON)
    with pytest.raises(ArchitectureRefusedError, match="one regime"):
        load_model(tmp_path, block_tokens=BLOCK_TOKENS, rope_regime="long")
    with pytest.raises(ValueError, match="rope_regime"):
        load_model(tmp_path, block_tokens=BLOCK_TOKENS, rope_regime="middle")
