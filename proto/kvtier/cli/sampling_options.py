"""What `kvtier generate` may say of sampling: options, and their words on the wire. Pure; the
worker judges whether they go together."""

from dataclasses import dataclass
from typing import Annotated

import typer

from kvtier.v1 import inference_pb2

__all__ = [
    "FrequencyPenalty",
    "Logprobs",
    "MinP",
    "PresencePenalty",
    "SamplingWords",
    "Seed",
    "Stop",
    "StopToken",
    "Temperature",
    "TopK",
    "TopP",
    "set_sampling",
]

INT32_MAX = 2**31 - 1


def _above_zero(value: float | None) -> float | None:
    """0 on the wire is unset: it would leave all tokens, of which it asks for none."""
    if value == 0:
        raise typer.BadParameter("must be above 0")
    return value


Temperature = Annotated[
    float, typer.Option("--temperature", min=0.0, max=10.0, help="0 is greedy.")
]
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        min=0.0,
        max=1.0,
        callback=_above_zero,
        help="Likeliest tokens with this chance together.",
    ),
]
TopK = Annotated[
    int | None, typer.Option("--top-k", min=1, max=INT32_MAX, help="So many likeliest tokens.")
]
MinP = Annotated[
    float | None,
    typer.Option("--min-p", min=0.0, max=1.0, help="Tokens so likely beside the likeliest."),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", min=-(2**63), max=2**63 - 1, help="The same seed, the same text."),
]
PresencePenalty = Annotated[
    float,
    typer.Option("--presence-penalty", min=-2.0, max=2.0, help="Off what was generated already."),
]
FrequencyPenalty = Annotated[
    float,
    typer.Option("--frequency-penalty", min=-2.0, max=2.0, help="Off, for each time it was."),
]
Stop = Annotated[
    list[str] | None, typer.Option("--stop", help="End before this text; may come 8 times.")
]
StopToken = Annotated[
    list[int] | None,
    typer.Option(
        "--stop-token", min=0, max=INT32_MAX, help="End before this token id; may come 64 times."
    ),
]
Logprobs = Annotated[
    int | None,
    typer.Option(
        "--logprobs",
        min=0,
        max=20,
        metavar="COUNT",
        help="Show each token's logprob, and those of so many likeliest ones.",
    ),
]


@dataclass(frozen=True, slots=True)
class SamplingWords:
    """Options as given; None: not given."""

    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None


def set_sampling(request: inference_pb2.GenerateRequest, words: SamplingWords) -> None:
    """Writes the options into `request`."""
    request.sampling.CopyFrom(
        inference_pb2.SamplingParameters(
            temperature=words.temperature,
            top_p=words.top_p or 0.0,
            top_k=words.top_k or 0,
            seed=words.seed,
            min_p=words.min_p or 0.0,
            presence_penalty=words.presence_penalty,
            frequency_penalty=words.frequency_penalty,
        )
    )
    request.stop.extend(words.stop)
    request.stop_token_ids.extend(words.stop_token_ids)
    if words.logprobs is not None:
        request.logprobs = words.logprobs
