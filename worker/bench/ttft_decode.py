"""Tokens a second of requests that decode at once, in contexts of their own and in a shared one.

Contexts are computed once and stay in pages; a round asks them again with another end. Counted is
from the moment at which the last of the requests has its first token to the first one's end, so
that every step in between decodes them all. Numbers of requests take turns. Main thread.
"""

from collections.abc import Callable, Sequence

import torch

from worker.bench.ttft_asking import Answer, ask, ask_together
from worker.bench.ttft_settings import TtftSettings
from worker.bench.ttft_tiers import random_tokens
from worker.engine import Engine, EngineSettings
from worker.model_loader import LoadedModel

__all__ = ["DecodeBench", "decode_settings", "rate_of"]


class DecodeBench:
    """Rounds in one engine, which needs `decode_settings` and has no cache service: nothing is
    offloaded."""

    def __init__(
        self,
        loaded: LoadedModel,
        engine: Engine,
        settings: TtftSettings,
        told: Callable[[str], None],
    ) -> None:
        """Computes the contexts."""
        self._loaded = loaded
        self._engine = engine
        self._settings = settings
        length = settings.decode_context - settings.decode_tokens
        generator = torch.Generator().manual_seed(2)
        self._contexts = []
        for number in range(max(settings.decode_requests)):
            told(f"decoding: computing context {number + 1} of {max(settings.decode_requests)}")
            self._contexts.append(random_tokens(loaded, length, generator))
            ask(engine, self._contexts[-1])
        self._hit = (length - 1) // loaded.block_tokens * loaded.block_tokens

    def prompts(self, number: int, count: int) -> list[list[int]]:
        """Of round `number` for `count` requests."""
        generator = torch.Generator().manual_seed(1000 + number)
        return self._with_ends(self._contexts[:count], generator)

    def shared_prompts(self, number: int, count: int) -> list[list[int]]:
        """The same for requests that all ask of the first one's context."""
        generator = torch.Generator().manual_seed(2000 + number)
        return self._with_ends(self._contexts[:1] * count, generator)

    def round(self, number: int) -> tuple[list[float], list[float]]:
        """Tokens a second for each number of requests, in the settings' order: in contexts of their
        own, and in a shared one."""
        counts = self._settings.decode_requests
        own, shared = dict[int, float](), dict[int, float]()
        for step in range(len(counts)):
            count = counts[(number + step) % len(counts)]
            own[count] = self._rate(self.prompts(number, count))
            shared[count] = self._rate(self.shared_prompts(number, count))
        return [own[count] for count in counts], [shared[count] for count in counts]

    def _with_ends(
        self, contexts: Sequence[Sequence[int]], generator: torch.Generator
    ) -> list[list[int]]:
        return [
            [
                *context[: self._hit],
                *random_tokens(self._loaded, len(context) - self._hit, generator),
            ]
            for context in contexts
        ]

    def _rate(self, prompts: Sequence[Sequence[int]]) -> float:
        return rate_of(ask_together(self._engine, prompts, self._settings.decode_tokens))


def decode_settings(loaded: LoadedModel, settings: TtftSettings) -> EngineSettings:
    """With pages for all contexts and what goes on from them."""
    most = max(settings.decode_requests)
    blocks = -(-settings.decode_context // loaded.block_tokens) + 2
    return EngineSettings(
        page_count=2 * most * blocks,
        step_tokens=settings.step_tokens,
        prompt_step_tokens=settings.prompt_step_tokens,
        running_requests_max=max(16, most),
    )


def rate_of(answers: Sequence[Answer]) -> float:
    """Tokens a second while all of `answers` were decoded."""
    began = max(answer.came[0] for answer in answers)
    ended = min(answer.came[-1] for answer in answers)
    return sum(_rate_of_one(answer.came, began, ended) for answer in answers)


def _rate_of_one(came: Sequence[float], began: float, ended: float) -> float:
    """From its first to its last token in between: a step's tokens come one after the other, so the
    last step's, behind the first one that ends there, would be lost, and its time would count."""
    inside = [at for at in came if began <= at <= ended]
    if len(inside) > 1:
        return (len(inside) - 1) / (inside[-1] - inside[0])
    return sum(began < at <= ended for at in came) / (ended - began)
