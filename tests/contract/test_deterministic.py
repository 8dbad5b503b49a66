"""A deterministic worker says bit for bit the same warm as cold: tokens, logprobs and logits.

What each prompt says alone, computed cold by an engine of its own, is what it says from pages, from
a real cache service's host memory, from its SSD after a restart, after eviction, with neighbours
beside it, as several samples, and as the next turn of what was computed before. The same story told
by an ordinary worker shows that it would not be so by itself.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.blocks import Tier
from kvtier.cli.processes import LocalCluster
from kvtier.keys import PUBLIC_SCOPE
from tests.cache_cluster import cache_cluster
from tests.contract.test_architectures import SUPPORTED, Witness
from tests.tiny_models import BLOCK_TOKENS, BytesCache, save_tiny
from worker.engine import Engine, EngineSettings
from worker.model_loader import LoadedModel, load_model
from worker.requests import EngineRequest, RequestEnded, RequestId, TokenEvent
from worker.sampling import Sampling

PIECE = 2 * BLOCK_TOKENS
KINDS = {
    "llama": "bfloat16",
    "gemma3_text": "bfloat16",
    "gpt_oss": "float32",
    "deepseek_v3": "float32",
}
"""Grouped heads, windows, sinks and experts, latents and experts."""
NEW_TOKENS = 12
"""Past a piece's end, for the short prompt: it would be there for the next turn, were it kept."""
DRAWN = Sampling(temperature=0.9, seed=11, logprobs=20)

Words = list[tuple[int, int, float, tuple[tuple[int, float], ...]]]
"""Sample, token, its logprob and the likeliest ones': to the last bit."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def torch_as_it_was() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., LoadedModel]:
    root = tmp_path_factory.mktemp("models")

    @cache
    def load(kind: str, deterministic: bool = True) -> LoadedModel:
        directory: Path = root / kind
        if not directory.exists():
            save_tiny(directory, kind, SUPPORTED[kind])
        tokens = PIECE if deterministic else None
        return load_model(
            directory,
            dtype=KINDS[kind],
            block_tokens=BLOCK_TOKENS,
            deterministic_tokens=tokens,
        )

    return load


def engine_of(loaded: LoadedModel, cache: Any, page_count: int = 96) -> Engine:
    limits = EngineSettings(page_count=page_count, step_tokens=PIECE + 5, load_timeout_seconds=60.0)
    return Engine(loaded, limits, cache, load_threads=0)


@dataclass(frozen=True)
class Said:
    words: Words
    hits: dict[Tier, int]


def ask(engine: Engine, prompts: Sequence[list[int]], late: int = 0) -> list[Said]:
    """What is said to `prompts`, asked together; the last `late` of them some steps later. To the
    short one twice."""
    events: list[list[Any]] = []

    def submit(prompt: list[int]) -> None:
        events.append([])
        request = EngineRequest(
            RequestId(f"r{len(events)}"),
            tuple(prompt),
            NEW_TOKENS,
            PUBLIC_SCOPE,
            sample_count=2 if prompt == SHORT else 1,
            sampling=DRAWN,
        )
        engine.submit(request, events[-1].append)

    early = len(prompts) - late
    for prompt in prompts[:early]:
        submit(prompt)
    for prompt in prompts[early:]:
        for _ in range(3):
            engine.step()
        submit(prompt)
    while engine.step():
        engine.check_integrity()
    return [said_in(seen) for seen in events]


def said_in(events: list[Any]) -> Said:
    end = events[-1]
    assert isinstance(end, RequestEnded), end
    assert not end.problem
    words = []
    for event in events:
        if isinstance(event, TokenEvent):
            told = event.logprob
            assert told is not None
            words.append((event.sample_index, event.token_id, told.logprob, told.top))
    return Said(sorted(words, key=lambda word: word[0]), dict(end.usage.hit_tokens_by_tier))


def alone(loaded: LoadedModel, prompt: list[int]) -> Words:
    """What is said to it cold, by an engine that knows nothing else."""
    engine = engine_of(loaded, None)
    (said,) = ask(engine, [prompt])
    engine.stop()
    assert not said.hits
    return said.words


def tokens_of(words: Words, sample: int = 0) -> list[int]:
    return [token for index, token, _, _ in words if index == sample]


def drawn(count: int, seed: int = 1) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    numbers: list[int] = torch.randint(3, 500, (count,), generator=generator).tolist()
    return numbers


STREAM = drawn(240)
SHORT, LONG = STREAM[: 3 * PIECE - 9], STREAM[: 4 * PIECE + 9]
"""The long one begins as the short one, which ends in a piece that its answer fills."""
OTHERS = [STREAM[:70] + drawn(40, seed) for seed in (2, 3)]


@dataclass
class Story:
    """The prompts of one model, and what each says alone."""

    loaded: LoadedModel
    expected: dict[tuple[int, ...], Words]

    @staticmethod
    def of(loaded: LoadedModel) -> "Story":
        story = Story(loaded, {})
        for prompt in (SHORT, LONG, *OTHERS):
            story.expect(prompt)
        story.expect(story.next_turn())
        return story

    def expect(self, prompt: list[int]) -> Words:
        if tuple(prompt) not in self.expected:
            self.expected[tuple(prompt)] = alone(self.loaded, prompt)
        return self.expected[tuple(prompt)]

    def next_turn(self) -> list[int]:
        """What was said to the short one, and a question more."""
        return [*SHORT, *tokens_of(self.expect(SHORT)), *drawn(30, seed=4)]

    def differing(self, engine: Engine) -> tuple[list[str], dict[Tier, int]]:
        """Tells the story to `engine`, everything with neighbours but the first; who said something
        else than alone, and what was hit."""
        turn = self.next_turn()
        rounds = [[SHORT], [*OTHERS, LONG], [turn, LONG, SHORT]]
        apart, hits = [], defaultdict[Tier, int](int)
        for number, prompts in enumerate(rounds):
            for prompt, said in zip(prompts, ask(engine, prompts, late=1), strict=True):
                if said.words != self.expect(prompt):
                    apart.append(f"round {number}, {len(prompt)} tokens")
                for tier, tokens in said.hits.items():
                    hits[tier] += tokens
        return apart, hits


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with cache_cluster() as made:
        made.start_cache()
        yield made


def test_from_every_tier_after_a_restart_and_with_neighbours_it_says_what_it_said_cold(
    models: Callable[..., LoadedModel], cluster: LocalCluster
) -> None:
    stories = {kind: Story.of(models(kind)) for kind in KINDS}
    stored: dict[str, dict[Any, bytes]] = {kind: {} for kind in KINDS}

    def tell(kind: str, page_count: int = 96) -> dict[Tier, int]:
        loaded = stories[kind].loaded
        assert cluster.cache is not None
        witness = Witness(loaded, cluster.cache.address, stored[kind])
        engine = engine_of(loaded, witness, page_count)
        apart, hits = stories[kind].differing(engine)
        evicted = engine.stats().evicted_pages_total
        engine.stop()
        witness.close()
        assert not apart, kind
        assert bool(evicted) == (page_count < 96)
        return hits

    for kind in KINDS:
        assert set(tell(kind)) == {Tier.GPU}
    for kind in KINDS:
        assert set(tell(kind)) == {Tier.GPU, Tier.HOST}
    for kind in KINDS:
        # Hardly more pages than one of the requests takes: others' leave, and come back.
        assert tell(kind, 12)[Tier.HOST] > 0
    assert cluster.cache is not None
    cluster.cache.stop()
    cluster.start_cache()
    for kind in KINDS:
        # Host memory too, for who comes second.
        assert tell(kind)[Tier.SSD] > 0


def test_the_logits_of_each_forward_have_the_same_bits(
    models: Callable[..., LoadedModel],
) -> None:
    """What a draw does not look at too: every logit of whatever is computed again."""
    loaded = models("llama")
    seen: dict[tuple[int, tuple[int, ...]], set[bytes]] = defaultdict(set)

    def note(model: Any, args: Any, kwargs: Any, output: Any) -> None:
        ids, positions = kwargs["input_ids"][0].tolist(), kwargs["position_ids"][0].tolist()
        if positions != [0]:  # an engine looks at its model with one token
            seen[positions[0], tuple(ids)].add(output.logits.float().numpy().tobytes())

    hook = loaded.model.register_forward_hook(note, with_kwargs=True)
    try:
        alone(loaded, LONG)
        cold = {what: set(bits) for what, bits in seen.items()}
        assert len(cold) == 5 + NEW_TOKENS - 1
        seen.clear()
        engine = engine_of(loaded, None)
        ask(engine, [*OTHERS, LONG])
        assert {what: bits & seen[what] for what, bits in cold.items()} == cold
        seen.clear()
        (warm,) = ask(engine, [LONG])
        assert warm.hits == {Tier.GPU: 4 * PIECE}
        assert seen == {what: bits for what, bits in cold.items() if what[0] >= 4 * PIECE}
        engine.stop()
    finally:
        hook.remove()


def test_without_the_mode_the_same_story_differs(models: Callable[..., LoadedModel]) -> None:
    ordinary = models("llama", deterministic=False)
    engine = engine_of(ordinary, None)
    apart, _ = Story.of(ordinary).differing(engine)
    engine.stop()
    assert apart


LENGTHS = st.builds(
    lambda pieces, beside: pieces * PIECE + beside, st.integers(1, 4), st.integers(-2, 2)
)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "deepseek_v3"])
def test_prompts_around_the_ends_of_pieces(kind: str, models: Callable[..., LoadedModel]) -> None:
    loaded = models(kind)
    streams = (STREAM, STREAM[: 2 * PIECE + 3] + drawn(200, seed=5))
    told: dict[tuple[int, ...], Words] = {}

    def expected(prompt: list[int]) -> Words:
        if tuple(prompt) not in told:
            told[tuple(prompt)] = alone(loaded, prompt)
        return told[tuple(prompt)]

    prompts = st.builds(lambda stream, length: stream[:length], st.sampled_from(streams), LENGTHS)

    @settings(max_examples=15, deadline=None)
    @given(st.lists(st.lists(prompts, min_size=1, max_size=3), min_size=1, max_size=4))
    def check(rounds: list[list[list[int]]]) -> None:
        engine = engine_of(loaded, BytesCache(), page_count=16)
        for together in rounds:
            for prompt, said in zip(together, ask(engine, together), strict=True):
                assert said.words == expected(prompt)
                assert sum(said.hits.values()) % PIECE == 0
        engine.stop()

    check()
