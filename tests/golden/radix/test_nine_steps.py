"""The nine steps of RadixAttention's figure (Zheng et al., SGLang), played on the real engine.

The tree is drawn after each step. A change of what stays, leaves or is shared shows as a difference
of `nine_steps.txt`, which `KVTIER_REWRITE_GOLDEN=1` writes anew; `docs/prefix-tree.md` has the same
drawings. Blocks have four tokens, the pool 17 pages.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from kvtier.keys import PUBLIC_SCOPE, BlockChain, BlockHash
from worker.engine import Engine, EngineSettings
from worker.model_loader import LoadedModel, load_model
from worker.prefix_tree import NodeView, PrefixTree
from worker.requests import (
    CacheMode,
    EngineEvent,
    EngineRequest,
    RequestEnded,
    RequestId,
    TokenEvent,
)
from worker.sampling import Sampling
from worker.tree_drawing import draw_tree

HERE = Path(__file__).parent
GOLDEN = HERE / "nine_steps.txt"
DOCS = HERE.parents[2] / "docs" / "prefix-tree.md"
BLOCK_TOKENS = 4
PAGES = 17
STEPS_MAX = 200

SYSTEM = [40, 41, 42, 43, 44, 45, 46, 47]
EXAMPLES = [50, 51, 52, 53, 54, 55, 56, 57]


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(tmp_path / "tiny")
    return load_model(tmp_path / "tiny", block_tokens=BLOCK_TOKENS)


@dataclass
class Asked:
    """A request and, once it ran, what it said."""

    name: str
    prompt: list[int]
    said: dict[int, list[int]] = field(default_factory=dict)
    end: RequestEnded | None = None

    def __call__(self, event: EngineEvent) -> None:
        if isinstance(event, TokenEvent):
            self.said.setdefault(event.sample_index, []).append(event.token_id)
        elif isinstance(event, RequestEnded):
            self.end = event

    @property
    def hit_blocks(self) -> int:
        assert self.end is not None
        return self.end.usage.hit_tokens // BLOCK_TOKENS


class Play:
    """The engine, what each block holds, and the drawings."""

    def __init__(self, loaded: LoadedModel, tree: Sequence[PrefixTree], engine: Engine) -> None:
        self._loaded = loaded
        self._tree = tree[0]
        self._engine = engine
        self._labels: dict[BlockHash, str] = {}
        self._before: tuple[NodeView, ...] = ()
        self.drawings: list[str] = []

    def label(self, tokens: Sequence[int], texts: Sequence[tuple[str, int]]) -> None:
        """Names the blocks of `tokens` that have none: so many for each text."""
        chain = BlockChain(self._loaded.namespace, PUBLIC_SCOPE)
        chain.extend(tokens)
        names = [text for text, count in texts for _ in range(count)]
        for block, name in zip(chain.hashes, names, strict=False):
            self._labels.setdefault(block, name)

    def submit(self, name: str, prompt: list[int], tokens: int, **more: Any) -> Asked:
        asked = Asked(name, prompt)
        request = EngineRequest(RequestId(name), tuple(prompt), tokens, PUBLIC_SCOPE, **more)
        self._engine.submit(request, asked)
        return asked

    def finish(self, *asked: Asked) -> None:
        self.step_until(lambda: all(each.end is not None for each in asked))

    def step_until(self, reached: Callable[[], bool]) -> None:
        for _ in range(STEPS_MAX):
            if reached():
                return
            self._engine.step()
            self._engine.check_integrity()
        raise AssertionError("the requests do not get there")

    def draw(self, title: str) -> None:
        nodes = self._tree.snapshot()
        self.drawings.append(
            title + "\n\n" + draw_tree(nodes, self._labels.__getitem__, self._before)
        )
        self._before = nodes


@pytest.fixture
def play(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> Play:
    trees: list[PrefixTree] = []

    class SeenTree(PrefixTree):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            trees.append(self)

    monkeypatch.setattr("worker.residency.PrefixTree", SeenTree)
    engine = Engine(loaded, EngineSettings(page_count=PAGES, step_tokens=64), None, lambda: 0.0, 0)
    return Play(loaded, trees, engine)


def test_nine_steps(play: Play) -> None:
    play.draw("1. Empty")

    # A prompt of whole blocks and an answer of one block and a token: the last is never computed.
    turn = [*SYSTEM, 60, 61, 62, 63]
    chat = play.submit("chat 1", turn, 5)
    play.finish(chat)
    turn = turn + chat.said[0]
    play.label(turn, [("system prompt", 2), ("chat 1: Hello! - Hi!", 2)])
    play.draw("2. A first chat")

    turn = [*turn, 64, 65, 66]
    chat = play.submit("chat 1, again", turn, 5)
    play.finish(chat)
    assert chat.hit_blocks == 4
    play.label(turn + chat.said[0], [("", 4), ("chat 1: Solve this - Sure", 2)])
    first_turn = turn[:17]
    play.draw("3. Its second turn goes on from the first")

    turn = [*SYSTEM, 70, 71, 72, 73]
    chat = play.submit("chat 2", turn, 5)
    play.finish(chat)
    assert chat.hit_blocks == 2
    turn = turn + chat.said[0]
    play.label(turn, [("", 2), ("chat 2: What is a tree? - A graph", 2)])
    play.draw("4. A second chat: the two part behind the system prompt")

    # Beside it a request that keeps nothing has the pages that are free.
    neighbour = play.submit("neighbour", list(range(1, 34)), 4, cache_mode=CacheMode.BYPASS)
    turn = [*turn, 74, 75, 76]
    chat = play.submit("chat 2, again", turn, 5)
    play.finish(chat, neighbour)
    assert chat.hit_blocks == 4
    play.label(turn + chat.said[0], [("", 4), ("chat 2: Draw one - Here", 2)])
    play.draw("5. It goes on; for lack of memory the first chat's second turn leaves")

    questions = [[*EXAMPLES, 80 + at, 81 + at, 82 + at, 83 + at, 58, 59] for at in (0, 10, 20)]
    query = play.submit("query 1", questions[0], 3)
    play.finish(query)
    assert query.hit_blocks == 0
    play.label(questions[0], [("examples", 2), ("question 1", 1)])
    play.label(questions[0] + query.said[0], [("", 3), ("answer 1", 1)])
    play.draw("6. A few-shot request shares nothing: a second chain from the root")

    batch = [play.submit(f"query {at + 1}", questions[at], 3) for at in (1, 2)]
    play.finish(*batch)
    for at, query in zip((1, 2), batch, strict=True):
        assert query.hit_blocks == 2
        play.label(questions[at], [("", 2), (f"question {at + 1}", 1)])
        play.label(questions[at] + query.said[0], [("", 3), (f"answer {at + 1}", 1)])
    play.draw("7. A batch of few-shot requests shares the examples")

    turn = [*first_turn, *range(100, 115)]
    chat = play.submit("chat 1, back", turn, 5)
    play.finish(chat)
    assert chat.hit_blocks == 4
    play.label(turn + chat.said[0], [("", 4), ("chat 1: And this? - Sure", 5)])
    play.draw("8. The first chat returns, and all that only the second had leaves")

    sampling = Sampling(temperature=5.0, seed=7)
    asked = play.submit("samples", questions[0], 3, sample_count=3, sampling=sampling)
    play.step_until(lambda: len(asked.said) == 3)
    play.draw("9a. Three more answers to the first question share its blocks while they run")
    play.finish(asked)
    assert asked.hit_blocks == 3
    for index, said in asked.said.items():
        play.label(questions[0] + said, [("", 3), (f"sample {index + 1}", 1)])
    play.draw("9b. They branch behind it; what was used longest ago has left")

    text = "\n".join(play.drawings)
    if os.environ.get("KVTIER_REWRITE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_the_page_for_people_has_the_same_drawings() -> None:
    page = DOCS.read_text()
    drawings = re.split(r"^\d.*\n\n", GOLDEN.read_text(), flags=re.MULTILINE)[1:]
    assert len(drawings) == 10
    assert re.findall(r"^```\n(\.\n.*?)```$", page, re.MULTILINE | re.DOTALL) == [
        drawing.rstrip("\n") + "\n" for drawing in drawings
    ]
