"""What makes equal inputs give equal bits, whoever computes them when: torch's fixed orders, the
recipe that blocks are named by, and the proof at load.

    pin_torch          before the model is loaded: what may order sums as it likes is refused
    check_repeatable   a piece and what follows it, computed twice in different pages and once after
                       bytes that were restored: KV and logits are the same, bit for bit
    recipe             everything that shapes sums, as text of the namespace: who computes otherwise
                       has other blocks

Invariant: two workers with equal recipes, weights and tokens compute equal bytes, as far as torch
does; where this process itself does not, the model is refused. Starting thread.
"""

import hashlib
import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from worker.attention.choose import AttentionChoice
from worker.errors import DeterminismRefusedError
from worker.grid import Grid
from worker.kv_pages import KvPages, PageId
from worker.layout import BlockLayout
from worker.model_runner import ModelRunner, Span
from worker.self_test import fill_pages, page_contents

__all__ = ["check_repeatable", "pin_torch", "recipe"]

WORKSPACES = (":4096:8", ":16:8")
"""Of cuBLAS: those with which it is the same each time."""

ENVIRONMENT = ("MKL_", "OMP_", "KMP_", "GOMP_", "ONEDNN_", "DNNL_", "ATEN_", "CUBLAS_", "NVIDIA_")
"""Variables of these beginnings change which kernels run, or in how many parts."""

PROCESSOR_LINES = frozenset(
    (
        "vendor_id, cpu family, model, model name, stepping, cache size, flags, Features,"
        "CPU implementer, CPU architecture, CPU variant, CPU part"
    )
    .replace(", ", ",")
    .split(",")
)
"""Of /proc/cpuinfo: what kernels are chosen by. The rest, clock speeds for one, moves."""

SINGLE_COUNT = 3
"""Tokens computed one by one, as decoding has them."""


def pin_torch(device: torch.device) -> None:
    """Sets torch to fixed orders, for the whole process. Raises DeterminismRefusedError."""
    if device.type not in ("cpu", "cuda"):
        raise DeterminismRefusedError(
            f"nobody knows in which order {device.type} adds; deterministic needs cpu or cuda",
            device=device.type,
        )
    if os.environ.get("OMP_DYNAMIC", "").strip().lower() in ("true", "1"):
        raise DeterminismRefusedError(
            "OMP_DYNAMIC lets sums be split by how busy the machine is; unset it",
            variable="OMP_DYNAMIC",
        )
    if device.type == "cuda" and os.environ.get("CUBLAS_WORKSPACE_CONFIG") not in WORKSPACES:
        raise DeterminismRefusedError(
            "cuBLAS adds in another order each time; set"
            f" CUBLAS_WORKSPACE_CONFIG={WORKSPACES[0]} in the environment",
            variable="CUBLAS_WORKSPACE_CONFIG",
        )
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    # It would write into all memory that is about to be overwritten anyway.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def recipe(device: torch.device, attention: str, grid: Grid) -> str:
    """All that shapes sums besides weights and tokens, as canonical JSON."""
    values = {
        "deterministic": grid.piece_tokens,
        "attention": attention,
        "torch": torch.__version__,
        "built": hashlib.sha256(torch.__config__.show().encode()).hexdigest()[:16],
        "transformers": version("transformers"),
        "precision": torch.get_float32_matmul_precision(),
        "device": _cuda_text(device) if device.type == "cuda" else _processor_text(),
        "environment": {
            name: value
            for name, value in os.environ.items()
            if name.startswith(ENVIRONMENT) and not name.startswith("NVIDIA_VISIBLE")
        },
    }
    return json.dumps(values, sort_keys=True, separators=(",", ":"))


def check_repeatable(
    model: Any,
    layout: BlockLayout,
    context_tokens: int,
    attention: AttentionChoice,
    grid: Grid,
) -> None:
    """Computes a piece, a shorter one and single tokens: twice, in other pages, and once after the
    piece's bytes were restored. Raises DeterminismRefusedError where any bit differs.

    Takes three times a piece's time, and memory for two pieces' pages and a few.
    """
    size = layout.block_tokens
    count = min(context_tokens, grid.piece_tokens + size + 1 + SINGLE_COUNT)
    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, vocabulary, (count,), generator=generator).tolist()
    pages = -(-count // size)
    kv = KvPages(layout, 2 * pages, model.device)
    runner = ModelRunner(model, kv, attention)
    one = [PageId(page) for page in range(pages)]
    other = [PageId(page) for page in reversed(range(pages, 2 * pages))]
    cuts = _cuts(count, grid)
    expected = _computed(runner, tokens, cuts, one)
    stored = page_contents(kv, one)
    full = count // size
    again = _computed(runner, tokens, cuts, other)
    _demand("computed again", expected, again)
    for content, same in zip(stored[:full], page_contents(kv, other[:full]), strict=True):
        if content.tobytes() != same.tobytes():
            raise DeterminismRefusedError("KV that is computed again has other bits")
    blocks = min(grid.piece_blocks, (count - 1) // size)
    if blocks == grid.piece_blocks:
        # In an order that neither had.
        third = [*other[1:], other[0]]
        fill_pages(kv, third[:blocks], stored[:blocks])
        warm = _computed(runner, tokens, cuts[1:], third, start=grid.piece_tokens)
        _demand("after restored bytes", expected[1:], warm)


def _cuts(count: int, grid: Grid) -> list[int]:
    """Where the pieces end: one of the grid, a shorter one, single ones."""
    piece = min(grid.piece_tokens, count)
    singles = range(max(piece, count - SINGLE_COUNT), count + 1)
    return sorted({piece, *singles, count})


def _computed(
    runner: ModelRunner,
    tokens: Sequence[int],
    cuts: Sequence[int],
    pages: Sequence[PageId],
    start: int = 0,
) -> list[torch.Tensor]:
    """The last token's logits of each piece."""
    found = []
    for end in cuts:
        found.append(runner.run([Span(tokens[start:end], start, pages, 1)]).cpu())
        start = end
    return found


def _demand(what: str, expected: Sequence[torch.Tensor], got: Sequence[torch.Tensor]) -> None:
    for place, (right, logits) in enumerate(zip(expected, got, strict=True)):
        if not torch.equal(right.view(torch.int32), logits.view(torch.int32)):
            off = float((right - logits).abs().max())
            raise DeterminismRefusedError(
                f"logits {what} have other bits, in piece {place} by up to {off:.1e}: this model"
                " does not compute the same each time here"
            )


def _processor_text() -> str:
    """The processor by what kernels are chosen by, and in how many parts sums are computed."""
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{_processor()}/{capability}/{torch.get_num_threads()} threads"


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return f"{platform.system()}/{platform.machine()}/{platform.processor()}"
    first = text.partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    kept = {name.strip(): value.strip() for name, _, value in pairs}
    told = sorted((name, value) for name, value in kept.items() if name in PROCESSOR_LINES)
    digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
    return f"{platform.machine()}/{kept.get('model name', '')}/{digest}"


def _cuda_text(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    name = torch.cuda.get_device_name(device)
    libraries = f"{torch.version.cuda}/{torch.backends.cudnn.version()}"  # type: ignore[no-untyped-call]
    return f"{name}/{major}.{minor}/{libraries}"
