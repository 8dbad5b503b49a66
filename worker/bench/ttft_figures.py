"""Rows of the TTFT benchmark from its rounds, as plain data. Pure.

Times are medians over rounds; ratios are medians of the ratios within a round. What was not
measured is null, never 0.
"""

from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from worker.bench.ttft_run import ContextRounds, DecodeRounds
from worker.bench.ttft_tiers import Round

__all__ = ["context_row", "decode_rows", "peer_decode", "peer_results", "with_shared"]

_TIERS = ("gpu", "host", "ssd")


def context_row(rows: ContextRounds) -> dict[str, Any]:
    """Of one context."""
    rounds = rows.ours
    seconds = {
        f"{name}_seconds": median(getattr(each, f"{name}_seconds") for each in rounds)
        for name in ("cold", "transformers", *_TIERS)
    }
    return {
        "context_tokens": rows.context_tokens,
        "new_tokens": rounds[0].new_tokens,
        **seconds,
        **{f"cold_over_{tier}": _ratio(rounds, "cold", tier) for tier in _TIERS},
        "cold_over_transformers": _ratio(rounds, "cold", "transformers"),
        "prompt_tokens_per_second": {
            name.removesuffix("_seconds"): (rows.context_tokens - 1) / value
            for name, value in seconds.items()
        },
        "same_first_token_count": sum(each.same_first_token for each in rounds),
        "rounds": [asdict(each) for each in rounds],
    }


def decode_rows(
    counts: Sequence[int], context_tokens: int, rounds: Sequence[Sequence[float]]
) -> list[dict[str, Any]]:
    """A row for each number of requests; `rounds` has a rate for each."""
    return [
        {
            "requests": count,
            "tokens_per_second": median(rates[place] for rates in rounds),
            "over_first": median(rates[place] / rates[0] for rates in rounds),
            "context_tokens": context_tokens,
            "rounds": [rates[place] for rates in rounds],
        }
        for place, count in enumerate(counts)
    ]


def with_shared(
    rows: list[dict[str, Any]], shared: Sequence[Sequence[float]]
) -> list[dict[str, Any]]:
    """`decode_rows` with the rates of those that decode in one context, by the same first row."""
    for place, row in enumerate(rows):
        rates = [each[place] for each in shared]
        row["shared_tokens_per_second"] = median(rates)
        pairs = zip(rates, rows[0]["rounds"], strict=True)
        row["shared_over_first"] = median([rate / first for rate, first in pairs])
    return rows


def peer_results(place: int, contexts: Sequence[ContextRounds]) -> list[dict[str, Any]]:
    """Rows of one peer; ratios are its time over ours of the same round."""
    return [
        {
            "context_tokens": rows.context_tokens,
            "cold_seconds": median(cold for cold, _ in rows.peers[place]),
            "gpu_seconds": median(warm for _, warm in rows.peers[place]),
            "cold_over_gpu": median(cold / warm for cold, warm in rows.peers[place]),
            "its_cold_over_ours": median(
                cold / ours.cold_seconds
                for (cold, _), ours in zip(rows.peers[place], rows.ours, strict=True)
            ),
            "its_gpu_over_ours": median(
                warm / ours.gpu_seconds
                for (_, warm), ours in zip(rows.peers[place], rows.ours, strict=True)
            ),
        }
        for rows in contexts
    ]


def peer_decode(
    place: int, counts: Sequence[int], context_tokens: int, decode: DecodeRounds
) -> list[dict[str, Any]]:
    """A peer's `decode_rows`, with how many times as fast ours was."""
    rows = decode_rows(counts, context_tokens, decode.peers[place])
    for at, row in enumerate(rows):
        pairs = zip(decode.ours, decode.peers[place], strict=True)
        row["our_ratio_to_it"] = median([ours[at] / theirs[at] for ours, theirs in pairs])
    return rows


def _ratio(rounds: Sequence[Round], of: str, to: str) -> float:
    ratios: list[float] = [
        getattr(each, f"{of}_seconds") / getattr(each, f"{to}_seconds") for each in rounds
    ]
    return median(ratios)
