"""What a checkpoint would be as a worker's model, as data and as a table, or why it is none.

Pure but for one forward of a token, which asks each layer for its window. Any thread, one at a
time.
"""

from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from rich.filesize import decimal
from rich.table import Table

from worker.attention.witness import watch
from worker.model_loader import LoadedModel
from worker.self_test import TOLERANCES

__all__ = ["LayerRun", "ModelReport", "report_on", "report_table"]


@dataclass(frozen=True, slots=True)
class LayerRun:
    """Layers one after the other that cache and attend alike."""

    first_layer: int
    layer_count: int
    key_heads: int
    key_dim: int
    value_heads: int
    value_dim: int
    window_tokens: int | None
    """None: a token sees all before it."""


@dataclass(frozen=True, slots=True)
class ModelReport:
    """Keys and units are those of `kvtier model check --json`."""

    model: str
    architecture: str
    dtype: str
    attention: str
    context_tokens: int
    model_context_tokens: int
    """What the checkpoint could do in another regime of RoPE, or the same."""
    rope_regime: str | None
    block_tokens: int
    block_bytes: int
    bytes_per_token: int
    context_bytes: int
    """Of KV for one request that fills the context."""
    layout: str
    layers: tuple[LayerRun, ...]
    namespace_id: str
    deterministic_piece_tokens: int
    """0: warm answers may differ from cold ones in their last bits."""
    adapter: str
    """The digest of what was merged, or empty."""
    logit_difference: float
    logit_tolerance: float
    transformers: str
    torch: str

    def data(self) -> dict[str, Any]:
        return asdict(self)


def report_on(loaded: LoadedModel) -> ModelReport:
    """Leaves the model attending as no engine does: it is not to be served afterwards."""
    layout = loaded.layout
    block_count = -(-loaded.context_tokens // layout.block_tokens)
    return ModelReport(
        model=loaded.name,
        architecture=loaded.architecture,
        dtype=loaded.dtype,
        attention=loaded.attention.name,
        context_tokens=loaded.context_tokens,
        model_context_tokens=loaded.regime.model_context_tokens,
        rope_regime=loaded.regime.name,
        block_tokens=layout.block_tokens,
        block_bytes=layout.block_bytes,
        bytes_per_token=layout.block_bytes // layout.block_tokens,
        context_bytes=block_count * layout.block_bytes,
        layout=layout.describe(),
        layers=_layer_runs(loaded),
        namespace_id=loaded.namespace.id.hex(),
        deterministic_piece_tokens=loaded.grid.piece_tokens,
        adapter=loaded.namespace.adapter,
        logit_difference=loaded.difference,
        logit_tolerance=TOLERANCES[layout.dtype],
        transformers=version("transformers"),
        torch=version("torch"),
    )


def _layer_runs(loaded: LoadedModel) -> tuple[LayerRun, ...]:
    windows = [handed.window for handed in watch(loaded.model, [0], [0], past=0)]
    runs: list[LayerRun] = []
    for index, (layer, window) in enumerate(zip(loaded.layout.layers, windows, strict=True)):
        kind = (layer.key_heads, layer.key_dim, layer.value_heads, layer.value_dim, window)
        if runs and kind == (last := _kind(runs[-1])):
            run = runs.pop()
            runs.append(LayerRun(run.first_layer, run.layer_count + 1, *last))
        else:
            runs.append(LayerRun(index, 1, *kind))
    return tuple(runs)


def _kind(run: LayerRun) -> tuple[int, int, int, int, int | None]:
    return run.key_heads, run.key_dim, run.value_heads, run.value_dim, run.window_tokens


def report_table(report: ModelReport) -> Table:
    table = Table(title=f"{report.model} can be served", title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("value", overflow="fold")
    context = f"{report.context_tokens:,} tokens"
    if report.context_tokens < report.model_context_tokens:
        context += f", of {report.model_context_tokens:,}; --rope-regime long has the rest"
    rows = {
        "architecture": f"{report.architecture}, {report.dtype}",
        "context": context,
        "attention": report.attention,
        "cached": "\n".join(_layers_text(run) for run in report.layers),
        "a token": f"{report.bytes_per_token:,} bytes",
        f"a block of {report.block_tokens}": decimal(report.block_bytes),
        "a full context": decimal(report.context_bytes),
        "layout": report.layout,
        "blocks are named in": report.namespace_id,
        "paged logits": f"within {report.logit_difference:.1e} of the plain model's"
        f" (at most {report.logit_tolerance:.0e} is right)",
        "deterministic": _deterministic_text(report.deterministic_piece_tokens),
        "with": f"transformers {report.transformers}, torch {report.torch}",
    }
    for what, value in rows.items():
        table.add_row(what, value)
    return table


def _deterministic_text(piece_tokens: int) -> str:
    return f"in pieces of {piece_tokens:,} tokens" if piece_tokens else "no"


def _layers_text(run: LayerRun) -> str:
    last = run.first_layer + run.layer_count - 1
    which = f"layer {last}" if run.layer_count == 1 else f"layers {run.first_layer} to {last}"
    seen = "" if run.window_tokens is None else f", window of {run.window_tokens:,} tokens"
    return (
        f"{which}: {run.key_heads} x {run.key_dim} keys, {run.value_heads} x {run.value_dim}"
        f" values{seen}"
    )
