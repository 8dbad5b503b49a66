"""`kvtier model ...`: look at a checkpoint before it is served; no service is needed or started.

Standard output has the answer alone, a table or with --json one object; everything else goes to
standard error. Exit status 1 when the model would be refused, 2 for a wrong command line.
"""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from kvtier.errors import KvtierError
from kvtier.keys import DEFAULT_BLOCK_TOKENS
from worker.token_command import tokens
from worker.transformers_version import check_transformers

if TYPE_CHECKING:
    from worker.model_report import ModelReport

__all__ = ["app"]

REFUSED = 1

app = typer.Typer(no_args_is_help=True, help="Look at a checkpoint before it is served.")


class Dtype(StrEnum):
    """Values of --dtype; `worker.settings` has the same."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class RopeRegime(StrEnum):
    SHORT = "short"
    LONG = "long"


@app.callback()
def model() -> None:
    """Look at a checkpoint before it is served."""


@app.command(short_help="Would a worker serve it? If not, why?")
def check(
    directory: Annotated[
        Path, typer.Argument(help="A Hugging Face checkpoint.", show_default=False)
    ],
    adapter: Annotated[
        Path | None, typer.Option("--adapter", help="A LoRA adapter to merge into it.")
    ] = None,
    dtype: Annotated[Dtype, typer.Option("--dtype", help="What it computes in.")] = Dtype.AUTO,
    device: Annotated[str, typer.Option("--device", help="What it computes on.")] = "cpu",
    block_tokens: Annotated[
        int, typer.Option("--block-tokens", min=1, max=4096, help="Tokens in a block.")
    ] = DEFAULT_BLOCK_TOKENS,
    rope_regime: Annotated[
        RopeRegime, typer.Option("--rope-regime", help="Of a checkpoint that has two.")
    ] = RopeRegime.SHORT,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Prove that it computes the same each time.")
    ] = False,
    step_tokens: Annotated[
        int, typer.Option("--step-tokens", min=1, max=1 << 20, help="Pieces of --deterministic.")
    ] = 512,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead.")] = False,
) -> None:
    """Loads the checkpoint as a worker would, proves that pages give the plain model's logits, and
    shows what would be cached; or says why it is refused."""
    try:
        report = _report(
            directory,
            adapter=adapter,
            dtype=dtype.value,
            device=device,
            block_tokens=block_tokens,
            rope_regime=rope_regime.value,
            deterministic_tokens=step_tokens if deterministic else None,
        )
    except KvtierError as error:
        if as_json:
            refused = {"served": False, "reason": error.reason, "problem": str(error)}
            print(json.dumps(refused))
        print(f"kvtier model check: {error.reason}: {error}", file=sys.stderr)
        raise typer.Exit(REFUSED) from None
    if as_json:
        print(json.dumps({"served": True, **report.data()}))
        return
    from worker.model_report import report_table

    Console().print(report_table(report))


app.command(short_help="A prompt's token ids, to check a receipt with.")(tokens)


def _report(directory: Path, **how: Any) -> "ModelReport":
    """`how`: as `load_model` takes it. Raises KvtierError when the model would be refused."""
    check_transformers()
    # Late: --help should not take the seconds that torch takes.
    from transformers.utils import logging

    from worker.model_loader import load_model
    from worker.model_report import report_on

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return report_on(load_model(directory, **how))
