"""Logprobs of a reply as people and programs read them. Pure functions."""

import math
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from kvtier.v1 import inference_pb2

__all__ = ["logprob_data", "logprob_table"]

Told = Sequence[inference_pb2.TokenLogprob]


def logprob_table(told: Told) -> Table:
    """A row for each token: its text as Python would quote it, how likely it and others were."""
    table = Table(title="Logprobs", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.show_edge = False
    table.add_column("token", no_wrap=True)
    table.add_column("logprob", justify="right", no_wrap=True)
    table.add_column("chance", justify="right", no_wrap=True)
    table.add_column("likeliest")
    for each in told:
        others = ", ".join(f"{top.text!r} {top.logprob:.3f}" for top in each.top)
        chance = f"{math.exp(each.logprob):.1%}"
        # As text, not markup: what a model writes must not style a terminal.
        table.add_row(Text(repr(each.text)), f"{each.logprob:.4f}", chance, Text(others))
    return table


def logprob_data(told: Told) -> list[dict[str, Any]]:
    """One object a token; every logprob is a number."""
    return [
        {
            "token_id": each.token_id,
            "text": each.text,
            "logprob": each.logprob,
            "top": [
                {"token_id": top.token_id, "text": top.text, "logprob": top.logprob}
                for top in each.top
            ],
        }
        for each in told
    ]
