"""However a prompt is cut, beside whatever it is computed, wherever its blocks come from: logits
stay within the stated tolerance of the plain model's, in every type that models compute in. Some
two hundred schedules, drawn from seeds.

`docs/determinism.md` states it; `worker.self_test.TOLERANCES` is the number, and the one that a
model must keep at load.
"""

import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.contract.test_architectures import SUPPORTED
from tests.tiny_models import BLOCK_TOKENS, save_tiny
from worker.kv_pages import KvPages, PageId
from worker.model_loader import LoadedModel, load_model
from worker.model_runner import ModelRunner, Span
from worker.self_test import TOLERANCES, logit_difference

KINDS = ("llama", "gemma3_text", "gpt_oss", "deepseek_v3")
"""Plain heads, windows, sinks and experts, latents and experts."""
TOKENS_MAX = 120
PIECE_MAX = 40
SEQUENCES_MAX = 3
SCHEDULES = 17
PAGES_EACH = -(-TOKENS_MAX // BLOCK_TOKENS)


@dataclass
class Sequence:
    tokens: list[int]
    expected: torch.Tensor
    """The plain model's logits at every position."""
    pages: list[PageId]
    spare: list[PageId]
    computed: int = 0

    @property
    def left(self) -> int:
        return len(self.tokens) - self.computed


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("models")

    @cache
    def made(kind: str, dtype: torch.dtype) -> tuple[Any, LoadedModel]:
        directory: Path = root / kind
        if not directory.exists():
            save_tiny(directory, kind, SUPPORTED[kind])
        name = str(dtype).removeprefix("torch.")
        plain = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, attn_implementation="eager"
        )
        return plain, load_model(directory, dtype=name, block_tokens=BLOCK_TOKENS)

    return made


def logits_of(plain: Any, tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = plain(torch.tensor([tokens]), use_cache=False).logits[0].float()
    return logits


def sequences(rng: random.Random, plain: Any) -> list[Sequence]:
    pages = list(range(2 * SEQUENCES_MAX * PAGES_EACH))
    rng.shuffle(pages)
    made = []
    for _ in range(rng.randint(1, SEQUENCES_MAX)):
        tokens = [rng.randrange(3, 500) for _ in range(rng.randint(1, TOKENS_MAX))]
        taken = [PageId(pages.pop()) for _ in range(2 * PAGES_EACH)]
        made.append(
            Sequence(tokens, logits_of(plain, tokens), taken[:PAGES_EACH], taken[PAGES_EACH:])
        )
    return made


def step(rng: random.Random, runner: ModelRunner, waiting: list[Sequence]) -> list[torch.Tensor]:
    """Computes a piece of some of them in one row; how far off each is, as shares of its largest
    logit, `[tokens, vocabulary]`."""
    some = rng.sample(waiting, rng.randint(1, len(waiting)))
    spans = []
    for one in some:
        count = min(one.left, rng.choice((1, rng.randint(1, PIECE_MAX))))
        end = one.computed + count
        spans.append(Span(one.tokens[one.computed : end], one.computed, one.pages, count))
    parts = runner.run(spans).split([len(span.token_ids) for span in spans])
    off = []
    for one, span, rows in zip(some, spans, parts, strict=True):
        off.append((rows - one.expected[span.start : span.end]) / one.expected.abs().max())
        one.computed = span.end
    return off


def move(kv: KvPages, one: Sequence) -> None:
    """Its whole blocks leave as bytes and come back into other pages; the rest is forgotten."""
    whole = one.computed // BLOCK_TOKENS
    landed = kv.landing(one.spare[:whole])
    for source, target in zip(kv.source(one.pages[:whole]), landed, strict=True):
        target[:] = source.copy()
    one.pages, one.spare = one.spare, one.pages
    one.computed = whole * BLOCK_TOKENS


def run(rng: random.Random, plain: Any, loaded: LoadedModel) -> list[torch.Tensor]:
    """Runs one random schedule to its end."""
    kv = KvPages(loaded.layout, 2 * SEQUENCES_MAX * PAGES_EACH, torch.device("cpu"))
    runner = ModelRunner(loaded.model, kv)
    every, off = sequences(rng, plain), []
    moves_left = 2 * len(every)
    while waiting := [one for one in every if one.left]:
        if moves_left and rng.random() < 0.2:
            moves_left -= 1
            move(kv, rng.choice(every))
        else:
            off += step(rng, runner, waiting)
    return off


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_any_schedule_are_within_the_tolerance(
    models: Any, kind: str, dtype: torch.dtype
) -> None:
    plain, loaded = models(kind, dtype)
    schedules = [run(random.Random(seed), plain, loaded) for seed in range(SCHEDULES)]
    off = torch.cat([rows for schedule in schedules for rows in schedule])
    one = torch.zeros_like(off)
    one[0, 0] = 1.0  # the differences are shares already
    assert logit_difference(plain, dtype, off + one, one) <= TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_block_of_another_prompt_is_far_outside_the_tolerance(
    models: Any, kind: str, dtype: torch.dtype
) -> None:
    plain, loaded = models(kind, dtype)
    rng = random.Random(1)
    kv = KvPages(loaded.layout, 16, torch.device("cpu"))
    runner = ModelRunner(loaded.model, kv)
    right, wrong = ([rng.randrange(3, 500) for _ in range(40)] for _ in range(2))
    pages = [PageId(page) for page in range(3)]
    expected = logits_of(plain, right)
    runner.run([Span(right[:16], 0, pages, 1)])
    good = runner.run([Span(right[16:], 16, pages, 24)])
    assert logit_difference(plain, dtype, good, expected[16:]) <= TOLERANCES[dtype]
    runner.run([Span(wrong[:16], 0, pages, 1)])
    bad = runner.run([Span(right[16:], 16, pages, 24)])
    assert logit_difference(plain, dtype, bad, expected[16:]) > 2 * TOLERANCES[dtype]
