"""One set of RoPE frequencies for a model whose checkpoint has two, chosen by length.

A `longrope` checkpoint has short factors for requests within its original length and long ones for
requests past it, and transformers takes one of them for all of a forward's tokens, by the largest
position among them. So the KV of a block depends on the tokens behind it, and in a row of several
requests on the neighbours: no name tells such blocks apart. A worker stays in one regime instead:

    short   the context ends at the original length, past which nothing is computed
    long    the whole context; every forward is shown a position past the original length

Invariant: while a model is used within `Regime.context_tokens`, its frequencies never change, and
the regime's name is in the namespace. `dynamic` RoPE changes only past `max_position_embeddings`,
where the context ends anyway. Pure but for `pin`; runs once, on the starting thread.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from worker.errors import ArchitectureRefusedError, CheckpointError

__all__ = ["Regime", "RegimeName", "choose_regime"]

RegimeName = Literal["short", "long"]


@dataclass(frozen=True, slots=True)
class Regime:
    """How long requests may be, and in which frequencies they are computed."""

    name: RegimeName | None
    """None: the checkpoint has one set of frequencies."""
    context_tokens: int
    model_context_tokens: int
    """What the checkpoint could do in another regime, or the same."""
    shown_position: int | None = None
    """A position that the rotary embeddings are shown with every forward."""

    def pin(self, model: Any) -> None:
        """Sets `model` to this regime, once. Raises ArchitectureRefusedError when it cannot."""
        if self.shown_position is None:
            return
        rotary = [module for module in model.modules() if _takes_longrope(module)]
        if not rotary:
            raise ArchitectureRefusedError(
                "the model has longrope in its configuration and no rotary embedding to pin to it"
            )
        for module in rotary:
            shown = _Shown(self.shown_position)
            module.register_forward_pre_hook(shown.add, with_kwargs=True)
            module.register_forward_hook(shown.take_off)


def choose_regime(config: Any, wanted: RegimeName) -> Regime:
    """The regime of a checkpoint by its text configuration.

    Raises CheckpointError without a context, ArchitectureRefusedError for a wanted long regime that
    the checkpoint does not have.
    """
    context = getattr(config, "max_position_embeddings", None)
    if not isinstance(context, int) or context < 1:
        raise CheckpointError(
            "config.json has no max_position_embeddings: how long a request may be is unknown"
        )
    originals = [
        int(rope.get("original_max_position_embeddings") or context)
        for rope in _rope_parameters(config)
        if rope.get("rope_type") == "longrope"
    ]
    original = min(originals, default=context)
    if original < context:
        if wanted == "long":
            return Regime("long", context, context, shown_position=max(originals))
        return Regime("short", original, context)
    if wanted == "long":
        raise ArchitectureRefusedError(
            "rope_regime=long: this checkpoint has one regime of RoPE for its whole context of "
            f"{context} tokens; leave the setting out"
        )
    return Regime("short" if originals else None, context, context)


def _rope_parameters(config: Any) -> Iterator[dict[str, Any]]:
    """One for all layers, or one for each kind of layer."""
    found = getattr(config, "rope_parameters", None) or {}
    if "rope_type" in found:
        yield found
        return
    yield from (rope for rope in found.values() if isinstance(rope, dict))


def _takes_longrope(module: torch.nn.Module) -> bool:
    kind = getattr(module, "rope_type", None)
    return kind == "longrope" or (isinstance(kind, dict) and "longrope" in kind.values())


class _Shown:
    """Appends a position before a rotary embedding's forward and takes its row off afterwards.

    The model decides as it always does, and the rows of its own tokens come out as they would
    beside a request that long.
    """

    def __init__(self, position: int) -> None:
        self._position = position

    def add(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if "position_ids" in kwargs:
            return args, {**kwargs, "position_ids": self._longer(kwargs["position_ids"])}
        x, positions, *rest = args
        return (x, self._longer(positions), *rest), kwargs

    def take_off(self, module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            return tuple(rows[..., :-1, :] for rows in output)
        return output[..., :-1, :]

    def _longer(self, positions: torch.Tensor) -> torch.Tensor:
        return torch.cat([positions, torch.full_like(positions[..., :1], self._position)], -1)
