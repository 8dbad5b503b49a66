"""The checkpoint that the TTFT benchmark runs: a given one, the demo's, or a random one by shape.

A random model of a real shape takes as long as the real one; what it writes means nothing. It is
drawn on the device, written once to `.kvtier/` and loaded as any checkpoint is, self-test included.
Invariant: a directory at the final name is complete. One thread.
"""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from kvtier.bench.errors import BenchError
from worker.bench.ttft_settings import TtftSettings
from worker.demo_checkpoint import make_demo_checkpoint

__all__ = ["SHAPES", "checkpoint_of"]


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama's sizes."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_heads: int
    vocabulary: int
    context_tokens: int
    tied: bool


SHAPES = {
    "8b": Shape(32, 4096, 14_336, 32, 8, 128_256, 131_072, tied=False),
    "1b": Shape(16, 2048, 8192, 32, 8, 128_256, 131_072, tied=True),
}
"""Llama 3.1 8B and Llama 3.2 1B. Beside them "demo", the demo's checkpoint."""

_SHARD_SIZE = "4GB"


def checkpoint_of(settings: TtftSettings, told: Callable[[str], None]) -> Path:
    """The checkpoint's directory, made if need be. Raises BenchError, OSError."""
    if settings.model is not None:
        return settings.model
    place = settings.directory / ".kvtier"
    if settings.shape == "demo":
        return make_demo_checkpoint(place / "bench-checkpoint", told)
    if settings.shape not in SHAPES:
        raise BenchError(f"no shape {settings.shape!r}: demo, {', '.join(SHAPES)}")
    directory = place / f"bench-{settings.shape}"
    if not (directory / "config.json").is_file():
        told(f"drawing a random model of shape {settings.shape}")
        _make(SHAPES[settings.shape], directory, settings.device)
    return directory


def _make(shape: Shape, directory: Path, device: str) -> None:
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        max_position_embeddings=shape.context_tokens,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        tie_word_embeddings=shape.tied,
        # A random model must not end its answer by chance.
        eos_token_id=None,
        bos_token_id=None,
    )
    directory.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                config, dtype=torch.bfloat16
            )
        model.save_pretrained(work, max_shard_size=_SHARD_SIZE)
        work.rename(directory)
    finally:
        shutil.rmtree(work, ignore_errors=True)
