"""Sampling in the engine: beside what transformers generates, and beside other requests."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
)

from worker.logprobs import TokenLogprob
from worker.requests import EndReason, RequestId, TokenEvent
from worker.sampling import Sampling

PROMPT = tuple(range(20, 57))


class Penalties(LogitsProcessor):
    """By definition, one token after the other."""

    def __init__(self, presence: float, frequency: float) -> None:
        self._presence, self._frequency = presence, frequency

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        for token, count in Counter(input_ids[0, len(PROMPT) :].tolist()).items():
            scores[0, token] -= self._presence + self._frequency * count
        return scores


@pytest.fixture(scope="module")
def plain(tiny_checkpoint: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)


def generate(plain: PreTrainedModel, new: int, **options: Any) -> Any:
    return plain.generate(  # type: ignore[operator]
        torch.tensor([PROMPT]),
        attention_mask=torch.ones(1, len(PROMPT), dtype=torch.long),
        max_new_tokens=new,
        do_sample=False,
        return_dict_in_generate=True,
        **{"eos_token_id": None, **options},
    )


def logprobs_of(watcher: Any, sample: int = 0) -> list[TokenLogprob]:
    events = [e for e in watcher.events if isinstance(e, TokenEvent) and e.sample_index == sample]
    assert all(event.logprob is not None for event in events)
    return [event.logprob for event in events if event.logprob is not None]


@pytest.mark.parametrize(("presence", "frequency"), [(2.0, 0.0), (0.0, 1.5), (1.0, 2.0), (-2, -2)])
def test_greedy_with_penalties_is_what_transformers_generates_with_them(
    bench: Any, plain: PreTrainedModel, presence: float, frequency: float
) -> None:
    processors = LogitsProcessorList([Penalties(presence, frequency)])
    expected = generate(plain, 24, logits_processor=processors).sequences[0, len(PROMPT) :]
    sampling = Sampling(presence_penalty=presence, frequency_penalty=frequency)
    engine = bench.engine()
    (seen,) = bench.run(engine, bench.request("a", PROMPT, new=24, sampling=sampling))
    assert seen.tokens() == expected.tolist()
    (warm,) = bench.run(engine, bench.request("b", PROMPT, new=24, sampling=sampling))
    assert warm.end.usage.hit_tokens == 32
    assert warm.tokens() == expected.tolist()


def test_logprobs_are_the_scores_that_transformers_computes(
    bench: Any, plain: PreTrainedModel
) -> None:
    out = generate(plain, 12, output_logits=True)
    scores = plain.compute_transition_scores(  # type: ignore[operator]
        out.sequences, out.logits, normalize_logits=True
    )[0]
    request = bench.request("a", PROMPT, new=12, sampling=Sampling(logprobs=3))
    (seen,) = bench.run(bench.engine(), request)
    assert seen.tokens() == out.sequences[0, len(PROMPT) :].tolist()
    told = logprobs_of(seen)
    assert [each.logprob for each in told] == pytest.approx(scores.tolist(), abs=1e-4)
    for logits, each in zip(out.logits, told, strict=True):
        assert [token for token, _ in each.top] == logits[0].topk(3).indices.tolist()


def test_a_sample_ends_before_a_stop_token_as_transformers_ends_at_one(
    bench: Any, plain: PreTrainedModel
) -> None:
    whole = generate(plain, 20).sequences[0, len(PROMPT) :].tolist()
    stop = whole[7]
    cut = generate(plain, 20, eos_token_id=[stop, 1]).sequences[0, len(PROMPT) :].tolist()
    assert cut[-1] == stop
    request = bench.request("a", PROMPT, new=20, stop_token_ids=frozenset({stop, 1}))
    (seen,) = bench.run(bench.engine(), request)
    assert seen.tokens() == cut[:-1]
    assert seen.end.end_reason is EndReason.STOP
    assert seen.end.usage.completion_tokens == len(cut) - 1


@pytest.mark.parametrize("number", range(6))
def test_a_seed_gives_the_same_tokens_whatever_runs_beside_it(
    bench: Any, watcher: Any, number: int
) -> None:
    """Other lengths, settings and ends, other steps and pieces, fresh pages and reused ones."""
    chance = random.Random(number)
    sampling = Sampling(
        temperature=1.3,
        top_p=0.95,
        top_k=60,
        min_p=0.01,
        presence_penalty=0.5,
        frequency_penalty=0.3,
        seed=11,
        logprobs=2,
    )
    request = bench.request("mine", PROMPT, new=20, sample_count=2, sampling=sampling)
    (alone,) = bench.run(bench.engine(), request)
    engine = bench.engine(page_count=256, step_tokens=chance.choice([8, 16, 64]))
    for other in range(chance.randrange(1, 12)):
        engine.submit(_other(bench, chance, other), watcher())
    for _ in range(chance.randrange(6)):
        engine.step()
    seen = watcher()
    engine.submit(request, seen)
    for other in range(20, 26):
        engine.submit(_other(bench, chance, other), watcher())
        engine.step()
        engine.cancel(RequestId(f"other-{chance.randrange(26)}"))
    bench.finish(engine)
    for sample in range(2):
        assert seen.tokens(sample) == alone.tokens(sample)
        told, before = logprobs_of(seen, sample), logprobs_of(alone, sample)
        assert [each.logprob for each in told] == pytest.approx(
            [each.logprob for each in before], abs=1e-4
        )


def _other(bench: Any, chance: random.Random, number: int) -> Any:
    prompt = (
        PROMPT
        if chance.random() < 0.3
        else chance.choices(range(3, 128), k=chance.randrange(1, 60))
    )
    sampling = chance.choice(
        [
            Sampling(),
            Sampling(presence_penalty=1.0),
            Sampling(temperature=1.0, seed=11),
            Sampling(temperature=2.0, top_k=5, min_p=0.1),
        ]
    )
    return bench.request(f"other-{number}", prompt, new=chance.randrange(1, 24), sampling=sampling)
