"""The namespace of a loaded checkpoint: everything besides tokens and scope that changes its KV.

Invariant: derived from the checkpoint's own bytes and the layout in use, never from a name, so two
machines with equal files share blocks and a swapped weight file shares none. Pure but for reading
files; any thread.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvtier.keys import Namespace
from worker.layout import BlockLayout

__all__ = ["ENGINE_ID", "checkpoint_namespace", "weights_digest"]

ENGINE_ID = "kvtier-paged/2"
"""Changes with anything in this engine that makes its KV bytes mean something else."""

READ_BYTES = 4 * 1024 * 1024


def checkpoint_namespace(
    directory: Path,
    weight_files: Sequence[Path],
    config: Any,
    layout: BlockLayout,
    rope_regime: str | None,
    adapter: str = "",
    engine: str = ENGINE_ID,
) -> Namespace:
    """The namespace of `layout` over the files of `directory`. Raises OSError.

    `rope_regime` is None for a checkpoint that has one set of frequencies; `adapter` is the digest
    of what was merged into its weights, or empty; `engine` starts with `ENGINE_ID` and says what
    else of this engine is in the bytes.
    """
    files = [directory / "config.json", *weight_files]
    return Namespace(
        weights=weights_digest(files),
        layout=layout.describe(),
        dtype=str(layout.dtype).removeprefix("torch."),
        block_tokens=layout.block_tokens,
        rope=_rope_text(config.get_text_config(), rope_regime),
        engine=engine,
        adapter=adapter,
    )


def weights_digest(files: Sequence[Path]) -> str:
    """SHA-256 over names and contents, in order of name. Raises OSError."""
    digest = hashlib.sha256()
    for path in sorted(files, key=lambda p: p.name):
        name = path.name.encode()
        digest.update(len(name).to_bytes(4, "little") + name)
        digest.update(path.stat().st_size.to_bytes(8, "little"))
        with path.open("rb") as file:
            while piece := file.read(READ_BYTES):
                digest.update(piece)
    return digest.hexdigest()


def _rope_text(config: Any, regime: str | None) -> str:
    """Every setting whose name speaks of rotary positions, and the regime, as canonical JSON."""
    values = config.to_dict()
    chosen = {
        name: value
        for name, value in values.items()
        if name.startswith(("rope", "rotary", "partial_rotary"))
    }
    # Dynamic RoPE scales with it.
    chosen["max_position_embeddings"] = values.get("max_position_embeddings")
    if regime is not None:
        chosen["regime"] = regime
    return json.dumps(chosen, sort_keys=True, default=str, separators=(",", ":"))
