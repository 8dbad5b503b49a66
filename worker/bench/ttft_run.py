"""The TTFT benchmark's rounds: ours and the peers take turns, context by context, then decoding.

The first round of each warms up and is dropped. Main thread.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from worker.bench.ttft_asking import fresh_engine
from worker.bench.ttft_decode import DecodeBench, decode_settings
from worker.bench.ttft_settings import TtftSettings
from worker.bench.ttft_tiers import Round, TierBench
from worker.model_loader import LoadedModel

__all__ = ["ContextRounds", "DecodeRounds", "Measured", "TtftPeer", "measure"]

Told = Callable[[str], None]


class TtftPeer(Protocol):
    """Another engine."""

    def first_tokens(
        self, prompt: Sequence[int], warm_prompt: Sequence[int]
    ) -> tuple[float, float]:
        """Seconds to the first token of both, one after the other; the second goes on from the
        first's tokens."""
        ...

    def decode(self, prompts: Sequence[Sequence[int]], token_count: int) -> float:
        """Tokens a second while all are decoded."""
        ...


@dataclass(frozen=True, slots=True)
class ContextRounds:
    """Of one context: our rounds, and of each peer cold and warm seconds."""

    context_tokens: int
    ours: list[Round]
    peers: list[list[tuple[float, float]]]


@dataclass(frozen=True, slots=True)
class DecodeRounds:
    """Tokens a second, `[round][number of requests]`."""

    ours: list[list[float]]
    peers: list[list[list[float]]]
    shared: list[list[float]] = field(default_factory=list)
    """Ours, where all decode in one context."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Rounds that count."""

    contexts: list[ContextRounds]
    decode: DecodeRounds | None


def measure(
    loaded: LoadedModel,
    settings: TtftSettings,
    peers: Sequence[TtftPeer],
    directory: Path,
    told: Told,
) -> Measured:
    """Everything, one after the other. Raises BenchError, ServiceStartError, OSError."""
    contexts = [
        _context(loaded, settings, count, peers, directory, told) for count in settings.contexts
    ]
    decode = _decode(loaded, settings, peers, told) if settings.decode_requests else None
    return Measured(contexts, decode)


def _context(
    loaded: LoadedModel,
    settings: TtftSettings,
    context_tokens: int,
    peers: Sequence[TtftPeer],
    directory: Path,
    told: Told,
) -> ContextRounds:
    bench = TierBench(loaded, settings, context_tokens, directory)
    rows = ContextRounds(context_tokens, [], [[] for _ in peers])
    for number in range(settings.rounds + 1):
        name = f"round {number} of {settings.rounds}" if number else "warming up"

        def say(text: str, name: str = name) -> None:
            told(f"{context_tokens:,} tokens, {name}: {text}")

        ours = None if peers and number % 2 else bench.round(number, say)
        theirs = []
        for peer in peers:
            say("another engine")
            prompt, warm_prompts = bench.prompts(number)
            theirs.append(peer.first_tokens(prompt, warm_prompts[0]))
        ours = ours or bench.round(number, say)
        if number:
            rows.ours.append(ours)
            for row, seconds in zip(rows.peers, theirs, strict=True):
                row.append(seconds)
    return rows


def _decode(
    loaded: LoadedModel, settings: TtftSettings, peers: Sequence[TtftPeer], told: Told
) -> DecodeRounds:
    rows = DecodeRounds([], [[] for _ in peers])
    with fresh_engine(loaded, decode_settings(loaded, settings), None) as engine:
        bench = DecodeBench(loaded, engine, settings, told)
        for number in range(settings.rounds + 1):
            told(f"decoding, {f'round {number} of {settings.rounds}' if number else 'warming up'}")
            ours, shared = bench.round(number)
            theirs = [
                [
                    peer.decode(bench.prompts(number, count), settings.decode_tokens)
                    for count in settings.decode_requests
                ]
                for peer in peers
            ]
            if number:
                rows.ours.append(ours)
                rows.shared.append(shared)
                for row, rates in zip(rows.peers, theirs, strict=True):
                    row.append(rates)
    return rows
