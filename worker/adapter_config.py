"""An `adapter_config.json` of LoRA: which modules it changes, of which rank, by how much.

Invariant: an option that is not known here is off, or the adapter is refused: what is left out
silently would be another model under the adapter's name. Module names are matched by peft's own
rules. Frozen; any thread.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from worker.errors import AdapterError, AdapterRefusedError

__all__ = ["CONFIG", "LoraConfig", "parse_config"]

CONFIG = "adapter_config.json"

UNDERSTOOD = frozenset(
    {
        "alpha_pattern",
        "bias",
        "exclude_modules",
        "init_lora_weights",
        "layers_to_transform",
        "lora_alpha",
        "peft_type",
        "r",
        "rank_pattern",
        "target_modules",
        "task_type",
        "use_rslora",
    }
)
CHANGES_NOTHING = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "fan_in_fan_out",  # the module's own kind says it
        "inference_mode",
        "lora_dropout",  # of training
        "megatron_core",  # where to find it, should `megatron_config` want it
        "peft_version",
        "qalora_group_size",  # of `use_qalora`
        "revision",
    }
)
BASE_IS_LEFT_ALONE = (True, False, "gaussian", "eva")
"""Ways to begin training that draw A and B only. The others change the base as well."""

SHOWN_MAX = 4

Number = TypeVar("Number", int, float)
Names = str | tuple[str, ...]
"""A regular expression for the whole of a path, or its last parts."""


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """All that a configuration says; modules by their path in the model."""

    targets: Names
    excluded: Names
    layers: frozenset[int] | None
    """None: all."""
    plain_rank: int
    ranks: Mapping[str, int]
    """By regular expression for the end of a path."""
    plain_alpha: float
    alphas: Mapping[str, float]
    rank_stabilised: bool

    def names(self, module: str) -> bool:
        """Whether it changes `module`, should that be a linear layer."""
        if _matches(self.excluded, module) or not _matches(self.targets, module):
            return False
        if self.layers is None or isinstance(self.targets, str):
            return True
        layer = re.match(r".*?\.[^.]*\.(\d+)\.", module)
        return layer is not None and int(layer[1]) in self.layers

    def rank(self, module: str) -> int:
        return _first(self.ranks, module, self.plain_rank)

    def scale(self, module: str) -> float:
        """What B @ A is multiplied by."""
        rank = self.rank(module)
        alpha = _first(self.alphas, module, self.plain_alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


def parse_config(raw: bytes) -> LoraConfig:
    """Raises AdapterError for what is no configuration, AdapterRefusedError for what is not merged.

    `raw`: the file's content.
    """
    try:
        config = json.loads(raw)
    except ValueError as error:
        raise AdapterError(f"{CONFIG} is no JSON: {error}") from None
    if not isinstance(config, dict):
        raise AdapterError(f"{CONFIG} is no JSON object")
    _refuse_unknown(config)
    return LoraConfig(
        targets=_names(config, "target_modules"),
        excluded=_names(config, "exclude_modules"),
        layers=_layers(config),
        plain_rank=_rank("r", config.get("r")),
        ranks={k: _rank(k, v) for k, v in _patterns(config, "rank_pattern").items()},
        plain_alpha=_alpha("lora_alpha", config.get("lora_alpha")),
        alphas={k: _alpha(k, v) for k, v in _patterns(config, "alpha_pattern").items()},
        rank_stabilised=bool(config.get("use_rslora")),
    )


def _refuse_unknown(config: dict[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise AdapterRefusedError(f"peft_type is {kind!r}: only LORA is merged")
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise AdapterRefusedError(
            f"task_type is {config['task_type']!r}: the adapter is not of a language model"
        )
    if config.get("bias", "none") != "none":
        raise AdapterRefusedError(f"bias is {config['bias']!r}: trained biases are not merged")
    start = config.get("init_lora_weights", True)
    if start not in BASE_IS_LEFT_ALONE:
        raise AdapterRefusedError(
            f"init_lora_weights is {start!r}: such an adapter belongs to a base that was changed "
            "when training began; save it converted to an ordinary one"
        )
    if config.get("target_modules") == "all-linear":
        raise AdapterRefusedError(
            "target_modules is all-linear, which is not the same modules in every version of peft; "
            "name them"
        )
    on = sorted(
        name
        for name, value in config.items()
        if name not in UNDERSTOOD and name not in CHANGES_NOTHING and value
    )
    if on:
        told = ", ".join(f"{name}={json.dumps(config[name])[:60]}" for name in on[:SHOWN_MAX])
        raise AdapterRefusedError(f"the adapter asks for what is not merged: {told}")


def _names(config: dict[str, Any], key: str) -> Names:
    found = config.get(key)
    if found is None and key == "exclude_modules":
        return ()
    if isinstance(found, str) and found:
        return _regular(key, found)
    if not isinstance(found, list) or not all(isinstance(name, str) and name for name in found):
        raise AdapterError(f"{CONFIG}: {key} is no list of names")
    return tuple(found)


def _layers(config: dict[str, Any]) -> frozenset[int] | None:
    found = config.get("layers_to_transform")
    if found is None or found == []:
        return None
    layers = found if isinstance(found, list) else [found]
    if not all(isinstance(layer, int) for layer in layers):
        raise AdapterError(f"{CONFIG}: layers_to_transform is no list of numbers")
    return frozenset(layers)


def _patterns(config: dict[str, Any], key: str) -> dict[str, Any]:
    found = config.get(key) or {}
    if not isinstance(found, dict):
        raise AdapterError(f"{CONFIG}: {key} is no object")
    return {_regular(key, pattern): value for pattern, value in found.items()}


def _regular(key: str, pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise AdapterError(f"{CONFIG}: {key} is no regular expression: {error}") from None
    return pattern


def _rank(key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise AdapterError(f"{CONFIG}: the rank {key} must be a count, not {value!r}")
    return value


def _alpha(key: str, value: Any) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise AdapterError(f"{CONFIG}: the alpha {key} must be a number, not {value!r}")
    return float(value)


def _matches(names: Names, module: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _first(patterns: Mapping[str, Number], module: str, otherwise: Number) -> Number:
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return otherwise
