"""A LoRA adapter's directory becomes part of a model's weights, or a typed refusal.

    adapter_config.json, adapter_model.safetensors -> LoraAdapter -> each W + scale * (B @ A)

Both files are read here, without peft, and pickled weights are not read at all. Invariant: what is
merged is everything that the files hold, and all that their configuration names; `digest` is of
the very bytes that were merged. Runs once, on the starting thread.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from transformers.pytorch_utils import Conv1D

from worker.adapter_config import CONFIG, LoraConfig, parse_config
from worker.errors import AdapterError, AdapterRefusedError

__all__ = ["LoraAdapter", "merge_adapter", "read_adapter", "targets_of"]

WEIGHTS, PICKLED = "adapter_model.safetensors", "adapter_model.bin"
TENSOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
FLOATS = frozenset({torch.float32, torch.bfloat16, torch.float16})
SHOWN_MAX = 4


@dataclass(frozen=True, slots=True)
class LoraAdapter:
    """What is added to each module: `config.scale(module) * (b[module] @ a[module])`."""

    name: str
    """The directory's name."""
    digest: str
    """SHA-256 over both files' lengths and contents."""
    config: LoraConfig
    a: Mapping[str, torch.Tensor]
    """By the module's path in the model; `[rank, inputs]`."""
    b: Mapping[str, torch.Tensor]
    """`[outputs, rank]`, of the same modules."""


def read_adapter(directory: Path) -> LoraAdapter:
    """Reads and checks `directory`. Raises AdapterError, AdapterRefusedError."""
    if not directory.is_dir():
        raise AdapterError(f"{directory} is not a directory", path=directory)
    if (directory / PICKLED).is_file() and not (directory / WEIGHTS).is_file():
        raise AdapterRefusedError(
            f"{directory} has its weights pickled ({PICKLED}), which runs whatever is in them; "
            "save it as safetensors"
        )
    raw_config, raw_weights = _read(directory, CONFIG), _read(directory, WEIGHTS)
    digest = hashlib.sha256()
    for raw in (raw_config, raw_weights):
        digest.update(len(raw).to_bytes(8, "little") + raw)
    config = parse_config(raw_config)
    a, b = _parse_weights(raw_weights)
    for module in a:
        _check_shapes(module, a[module], b[module], config.rank(module))
    return LoraAdapter(directory.resolve().name, digest.hexdigest(), config, a, b)


def merge_adapter(model: Any, adapter: LoraAdapter) -> None:
    """Adds `adapter` to the weights of `model`, in float32, rounded once to the weights' own type.

    Each changed module gets a weight of its own, so one that was tied to it stays as it was. Raises
    AdapterRefusedError, and `model` is unchanged then.
    """
    for name, module in targets_of(model, adapter).items():
        _merge(adapter, name, module)


def targets_of(model: Any, adapter: LoraAdapter) -> dict[str, torch.nn.Module]:
    """The layers of `model` that `adapter` changes, by path: all that its files name and hold, and
    fitting. Raises AdapterRefusedError."""
    modules = dict(model.named_modules())
    _refuse("is of another model: this one has no", adapter, set(adapter.a) - set(modules))
    targets = {
        name: module
        for name, module in modules.items()
        if _linear(module) and adapter.config.names(name)
    }
    _refuse(
        "has weights for what are no linear layers that its configuration names:",
        adapter,
        set(adapter.a) - set(targets),
    )
    _refuse("names, and has no weights for,", adapter, set(targets) - set(adapter.a))
    for name, module in targets.items():
        _check_fits(adapter, name, module)
    return targets


def _read(directory: Path, name: str) -> bytes:
    try:
        return (directory / name).read_bytes()
    except OSError as error:
        raise AdapterError(
            f"{directory} has no {name} that can be read ({error.strerror}): not a LoRA adapter",
            path=directory,
        ) from None


def _parse_weights(raw: bytes) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    try:
        tensors = load_safetensors(raw)
    except (SafetensorError, ValueError, KeyError) as error:
        raise AdapterError(f"{WEIGHTS} cannot be used: {error}") from None
    sides: dict[str, dict[str, torch.Tensor]] = {"A": {}, "B": {}}
    unknown = set()
    for name, tensor in tensors.items():
        match = TENSOR.fullmatch(name)
        if match is None:
            unknown.add(name)
        else:
            sides[match[2]][match[1]] = tensor
    if unknown:
        raise AdapterRefusedError(f"the adapter has weights that are not merged: {_some(unknown)}")
    halves = set(sides["A"]) ^ set(sides["B"])
    if halves:
        raise AdapterError(f"{WEIGHTS} has only one of A and B for {_some(halves)}")
    if not tensors:
        raise AdapterError(f"{WEIGHTS} is empty")
    return sides["A"], sides["B"]


def _check_shapes(module: str, a: torch.Tensor, b: torch.Tensor, rank: int) -> None:
    if a.dim() != 2 or b.dim() != 2 or not a.shape[0] == b.shape[1] == rank:
        raise AdapterError(
            f"{WEIGHTS}: {module} has A {list(a.shape)} and B {list(b.shape)}, and its rank is"
            f" {rank}"
        )
    for tensor in (a, b):
        if tensor.dtype not in FLOATS or not bool(torch.isfinite(tensor).all()):
            raise AdapterError(f"{WEIGHTS}: {module} is {tensor.dtype} or has what is no number")


def _linear(module: torch.nn.Module) -> bool:
    """Whether the module computes its weight times its input, and nothing of its own."""
    return type(module).forward in (torch.nn.Linear.forward, Conv1D.forward)


def _check_fits(adapter: LoraAdapter, name: str, module: Any) -> None:
    here = list(module.weight.shape)
    if isinstance(module, Conv1D):  # [inputs, outputs]
        here.reverse()
    there = [adapter.b[name].shape[0], adapter.a[name].shape[1]]
    if here != there:
        raise AdapterRefusedError(
            f"adapter {adapter.name} is of another model: {name} is {here} here and {there} there"
        )
    if module.weight.dtype not in FLOATS:
        raise AdapterRefusedError(
            f"{name} is stored as {module.weight.dtype}, to which no adapter can be added"
        )


def _merge(adapter: LoraAdapter, name: str, module: Any) -> None:
    weight = module.weight
    a, b = (
        side[name].to(device=weight.device, dtype=torch.float32) for side in (adapter.a, adapter.b)
    )
    with torch.no_grad():
        change = (b @ a) * adapter.config.scale(name)
        if isinstance(module, Conv1D):
            change = change.T
        merged = (weight.float() + change).to(weight.dtype)
    module.weight = torch.nn.Parameter(merged, requires_grad=False)


def _refuse(what: str, adapter: LoraAdapter, modules: set[str]) -> None:
    if modules:
        raise AdapterRefusedError(f"adapter {adapter.name} {what} {_some(modules)}")


def _some(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:SHOWN_MAX])
    return shown if len(names) <= SHOWN_MAX else f"{shown} and {len(names) - SHOWN_MAX} more"
