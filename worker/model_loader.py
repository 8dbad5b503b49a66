"""A checkpoint directory becomes a model that is known to cache correctly, or a typed refusal.

    files -> configuration -> refuse what blocks cannot name -> regime of RoPE -> weights
          -> adapter merged, or adapters hooked -> layout -> self-test
          (-> adapters' proof, determinism)

Invariant: a `LoadedModel` has passed the self-test, so its paged logits are those of the plain
model. Nothing is fetched: local files only. Runs once, on the starting thread.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from kvtier.keys import DEFAULT_BLOCK_TOKENS, Namespace
from worker.adapter_proof import prove_adapters
from worker.adapters import LoraAdapter, merge_adapter, read_adapter
from worker.added_adapters import AdaptedRunner, AddedAdapters
from worker.attention.choose import AttentionChoice
from worker.determinism import check_repeatable, pin_torch, recipe
from worker.errors import (
    AdapterUnknownError,
    ArchitectureRefusedError,
    CheckpointError,
    DeviceUnavailableError,
)
from worker.grid import NO_GRID, Grid
from worker.kv_pages import KvPages
from worker.layout import BlockLayout, probe_layout
from worker.model_runner import ModelRunner
from worker.namespace import ENGINE_ID, checkpoint_namespace
from worker.proven_attention import prove_attention
from worker.rope_regime import Regime, RegimeName, choose_regime
from worker.transformers_version import check_transformers

__all__ = ["LoadedModel", "load_model"]

DTYPES = {
    "auto": None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

NO_ADAPTERS: Mapping[str, Path] = MappingProxyType({})
ADAPTER_BYTES_MAX = 1 << 30

CACHEABLE_LAYERS = frozenset({"full_attention", "sliding_attention"})


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready for the engine. The model itself is owned by the engine's thread."""

    name: str
    """The directory's name; with an adapter merged, `NAME:ADAPTER`."""
    architecture: str
    dtype: str
    regime: Regime
    vocabulary_size: int
    stop_token_ids: frozenset[int]
    namespace: Namespace
    layout: BlockLayout
    attention: AttentionChoice
    """How it attends; the self-test was passed with it."""
    difference: float
    """Of paged logits from the plain model's, the largest that the self-test saw, as a share of the
    largest logit; within `worker.self_test.TOLERANCES`."""
    model: Any
    """An unmodified transformers decoder in evaluation mode."""
    grid: Grid = NO_GRID
    """Of a deterministic model: its namespace is of this grid."""
    added: AddedAdapters | None = None
    """Adapters that requests may name."""
    adapted: Mapping[str, Namespace] = field(default_factory=dict)
    """The namespaces of `added`, by name."""

    @property
    def context_tokens(self) -> int:
        """Of prompt and completion together; past them the model would compute something else."""
        return self.regime.context_tokens

    def namespace_of(self, adapter: str) -> Namespace:
        """That of one of the added adapters; "": the base's. Raises AdapterUnknownError."""
        if not adapter:
            return self.namespace
        if adapter not in self.adapted:
            raise AdapterUnknownError(
                f"{self.name} has no adapter {adapter}; it has {_list(self.adapted)}"
            )
        return self.adapted[adapter]

    def runner(self, kv: KvPages) -> ModelRunner:
        """What computes on the pages of `kv`, with the added adapters."""
        if self.added is None:
            return ModelRunner(self.model, kv, self.attention, self.context_tokens)
        return AdaptedRunner(self.model, kv, self.attention, self.added)

    @property
    def block_bytes(self) -> int:
        return self.layout.block_bytes

    @property
    def block_tokens(self) -> int:
        return self.layout.block_tokens


def load_model(
    directory: Path,
    *,
    dtype: str = "auto",
    device: str = "cpu",
    block_tokens: int = DEFAULT_BLOCK_TOKENS,
    rope_regime: RegimeName = "short",
    adapter: Path | None = None,
    deterministic_tokens: int | None = None,
    adapters: Mapping[str, Path] = NO_ADAPTERS,
    adapter_bytes_max: int = ADAPTER_BYTES_MAX,
) -> LoadedModel:
    """Loads the checkpoint in `directory` and proves that it can be cached.

    `dtype` is "auto" (as stored, float32 on a CPU), "float32", "bfloat16" or "float16"; for
    `rope_regime` see `worker.rope_regime`. `adapter` is a LoRA adapter's directory, merged into the
    weights; `adapters` are such directories by name, added to the requests that name them, of
    `adapter_bytes_max` together. `deterministic_tokens`: warm answers are bit-equal to cold ones,
    computed in pieces of so many tokens, in whole blocks; torch is set to fixed orders for the
    whole process. Raises
    CheckpointError, ArchitectureRefusedError, AdapterError, AdapterRefusedError,
    SelfTestFailedError, DeterminismRefusedError, DeviceUnavailableError, TransformersVersionError,
    ValueError for a bad argument.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    if rope_regime not in get_args(RegimeName):
        raise ValueError(f"rope_regime must be short or long, not {rope_regime!r}")
    if adapter is not None and adapters:
        raise ValueError("an adapter that is merged takes no others beside it")
    check_transformers()
    _check_device(device)
    grid = NO_GRID
    if deterministic_tokens is not None:
        grid = Grid.of(deterministic_tokens, block_tokens)
        pin_torch(torch.device(device))
    weight_files = _weight_files(directory)
    config = _read_config(directory)
    refuse_uncacheable(config)
    text_config = config.get_text_config()
    regime = choose_regime(text_config, rope_regime)
    lora = None if adapter is None else read_adapter(adapter)
    loras = {name: read_adapter(path) for name, path in adapters.items()}
    model = _read_model(directory, config, _pick_dtype(dtype, device), device)
    if lora is not None:
        merge_adapter(model, lora)
    # Before anything looks at how the model attends: a layer with a hook is read by nobody else.
    added = AddedAdapters(model, loras, adapter_bytes_max) if loras else None
    regime.pin(model)
    layout = probe_layout(model, block_tokens)
    attention, difference = prove_attention(
        model, layout, regime.context_tokens, deterministic=grid.fixed
    )
    if added is not None:
        attention = attention.unrecorded()
        prove_adapters(model, layout, regime.context_tokens, attention, loras, added)
    engine = ENGINE_ID
    if grid.fixed:
        check_repeatable(model, layout, regime.context_tokens, attention, grid)
        engine = f"{ENGINE_ID};{recipe(model.device, attention.name, grid)}"
    name = directory.resolve().name
    namespace = checkpoint_namespace(
        directory,
        weight_files,
        config,
        layout,
        regime.name,
        "" if lora is None else lora.digest,
        engine,
    )
    return LoadedModel(
        name=name if lora is None else f"{name}:{lora.name}",
        architecture=type(model).__name__,
        dtype=str(layout.dtype).removeprefix("torch."),
        regime=regime,
        vocabulary_size=int(text_config.vocab_size),
        stop_token_ids=_stop_token_ids(directory, text_config),
        namespace=namespace,
        layout=layout,
        attention=attention,
        difference=difference,
        model=model,
        grid=grid,
        added=added,
        adapted={name: _adapted(namespace, lora, grid) for name, lora in loras.items()},
    )


def _adapted(base: Namespace, lora: LoraAdapter, grid: Grid) -> Namespace:
    """That of the adapter merged, within the same tolerance; but not to the same bits."""
    engine = f"{base.engine};added" if grid.fixed else base.engine
    return replace(base, adapter=lora.digest, engine=engine)


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def refuse_uncacheable(config: Any) -> None:
    """Raises ArchitectureRefusedError when the configuration alone tells that KV is not enough."""
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise ArchitectureRefusedError(
            f"{kind} is an encoder-decoder: its keys depend on the whole input, not on a prefix"
        )
    text = config.get_text_config()
    layer_types = getattr(text, "layer_types", None) or []
    chunk = getattr(text, "attention_chunk_size", None)
    if "chunked_attention" in layer_types or (chunk and not layer_types):
        raise ArchitectureRefusedError(
            f"{kind} uses chunked attention: which tokens attend to each other is decided by a "
            f"mask over chunks of {chunk} tokens, which a paged cache cannot honour"
            + _also_counts(text)
        )
    foreign = sorted(set(layer_types) - CACHEABLE_LAYERS)
    if foreign:
        raise ArchitectureRefusedError(
            f"{kind} has layers of kind {', '.join(foreign)}: they keep what is no token's key or "
            "value (recurrent or convolutional state, an index), which blocks of tokens cannot name"
        )


def _also_counts(text: Any) -> str:
    """Of Llama 4: what would still be wrong were chunks honoured."""
    if not getattr(text, "attn_temperature_tuning", None):
        return ""
    return (
        "; and it scales attention by how many tokens its cache says are before a row, which is not"
        " a token's position when requests share a row"
    )


def _check_device(device: str) -> None:
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise DeviceUnavailableError(
            f"torch cannot compute on {device!r} here: {_first_line(error)}"
        ) from None


def _weight_files(directory: Path) -> list[Path]:
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is not a directory", path=directory)
    if not (directory / "config.json").is_file():
        raise CheckpointError(f"{directory} has no config.json: not a checkpoint", path=directory)
    for pattern in ("*.safetensors", "pytorch_model*.bin"):
        files = sorted(directory.glob(pattern))
        if files:
            return files
    raise CheckpointError(f"{directory} has no weights (*.safetensors)", path=directory)


def _read_config(directory: Path) -> Any:
    try:
        return AutoConfig.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"config.json of {directory} cannot be used: {_first_line(error)}", path=directory
        ) from error


def _read_model(directory: Path, config: Any, dtype: torch.dtype | None, device: str) -> Any:
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            directory, config=config, dtype=dtype or "auto", local_files_only=True
        )
    except Exception as error:
        raise CheckpointError(
            f"the weights of {directory} cannot be used: {_first_line(error)}", path=directory
        ) from error
    return model.to(device).eval()


def _pick_dtype(dtype: str, device: str) -> torch.dtype | None:
    # Half precision on a CPU is slower than float32 and less exact.
    if dtype == "auto" and device == "cpu":
        return torch.float32
    return DTYPES[dtype]


def _stop_token_ids(directory: Path, text_config: Any) -> frozenset[int]:
    eos: Any = text_config.eos_token_id
    if (directory / "generation_config.json").is_file():
        try:
            read = GenerationConfig.from_pretrained(directory, local_files_only=True)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"generation_config.json cannot be used: {_first_line(error)}", path=directory
            ) from error
        eos = eos if read.eos_token_id is None else read.eos_token_id
    if eos is None:
        return frozenset()
    return frozenset({eos} if isinstance(eos, int) else eos)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
