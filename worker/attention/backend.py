"""What a way of attending to pages has to do, and what a layer may ask of it. Pure types."""

from dataclasses import dataclass
from typing import Protocol

import torch

from worker.attention.step import AttentionStep
from worker.kv_pages import KvPages

__all__ = ["AttentionBackend", "Options", "hidden_keys"]


@dataclass(frozen=True, slots=True)
class Options:
    """What a layer asks for besides its queries."""

    scale: float
    """Times every score."""
    window: int | None = None
    """A query sees so many tokens, itself included; None: all before it."""
    softcap: float | None = None
    """Scores are squeezed into plus or minus this."""
    sinks: torch.Tensor | None = None
    """One score a head, `[heads]`, that takes its share of attention and gives nothing."""


class AttentionBackend(Protocol):
    """Attends to the pages of one pool. Engine's thread; keeps no state that outlives a step but
    memory to work in.

    Invariant: a token attends to its own sequence's tokens up to itself, inside the layer's window,
    and to nothing else in the pool, whatever unused slots hold.
    """

    name: str
    """As it is reported; one of `worker.attention.choose`."""

    def __init__(self, kv: KvPages) -> None: ...

    def attend(
        self,
        step: AttentionStep,
        layer: int,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        options: Options,
    ) -> torch.Tensor:
        """`query` is `[heads, tokens, dim]`; `keys` and `values` are those of the same tokens,
        `[key heads, tokens, dim]`, and are in the pages already, as all before them.

        Returns `[tokens, heads, value dim]`.
        """
        ...


def hidden_keys(query_at: torch.Tensor, key_at: torch.Tensor, window: int | None) -> torch.Tensor:
    """Which keys a query does not see, by positions of any shapes that go together."""
    hidden = key_at > query_at
    if window is not None:
        hidden |= key_at <= query_at - window
    return hidden
