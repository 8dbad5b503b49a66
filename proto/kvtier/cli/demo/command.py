"""`kvtier demo`: arguments in, the story run, tables and JSON out. Main thread."""

import json
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import grpc
import typer
from rich.console import Console

from kvtier.cli.demo.document import DocumentError, cut_document, read_document
from kvtier.cli.demo.result import DemoResult
from kvtier.cli.demo.scenario import (
    AUDITOR,
    FIRST,
    PUBLIC_PROMPT,
    SECOND,
    STEPS,
    Story,
    steps,
)
from kvtier.cli.demo.session import DemoSession
from kvtier.cli.demo.view import show
from kvtier.cli.processes import LocalCluster, run_room_tool
from kvtier.cli.progress import step
from kvtier.errors import KvtierError, read_error

__all__ = ["demo"]

WIDTH_PIPED = 100


def demo(
    document: Annotated[
        Path | None,
        typer.Option("--document", help="UTF-8 text to ask about. Default: kvtier's own docs."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write everything to this file as JSON.")
    ] = None,
    directory: Annotated[
        Path | None,
        typer.Option("--directory", help="Keep data and logs here. Default: a temporary one."),
    ] = None,
    model_directory: Annotated[
        Path, typer.Option("--model-cache", help="Where the demo checkpoint is kept.")
    ] = Path(".kvtier/demo-model"),
) -> None:
    """The whole way: prompts, tiers, a crash, equal answers, and the bill. A minute or two."""
    console = _console()
    if json_file is not None and not json_file.absolute().parent.is_dir():
        console.print(
            f"kvtier demo: {json_file.parent} is no directory",
            style="red",
            markup=False,
            soft_wrap=True,
        )
        raise typer.Exit(2)
    result = DemoResult()
    started = time.monotonic()
    with ExitStack() as stack:
        home = directory or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="kvtier-demo-"))
        )
        try:
            _tell(console, stack, result, home, model_directory, document)
        except (KvtierError, grpc.RpcError) as error:
            console.print(
                f"kvtier demo: {_words(error)}", style="red", markup=False, soft_wrap=True
            )
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            console.print("stopped")
            raise typer.Exit(130) from None
    result.seconds = round(time.monotonic() - started, 1)
    show(console, result)
    if json_file is not None:
        json_file.write_text(json.dumps(result.as_json(), indent=2) + "\n")
        console.print(f"written to {json_file}", markup=False)
    if not result.checks or not all(result.checks.values()):
        raise typer.Exit(1)


def _tell(
    console: Console,
    stack: ExitStack,
    result: DemoResult,
    home: Path,
    model: Path,
    document: Path | None,
) -> None:
    raw, source = read_document(document)
    with step(
        console, "preparing the demo checkpoint (made here, once; its answers mean nothing)"
    ) as say:
        run_room_tool("worker.demo_checkpoint", str(model), say=say)
    text = cut_document(raw, source, model / "tokenizer.json")
    result.document, result.document_tokens, result.model = (
        text.source,
        text.token_count,
        model.name,
    )
    public = home / "public"
    public.mkdir(parents=True, exist_ok=True)
    (public / "assistant.txt").write_text(PUBLIC_PROMPT)
    cluster = LocalCluster(
        home,
        model,
        worker_settings={
            "tenants": ",".join((FIRST, SECOND, AUDITOR)),
            "public_prefix_directory": public,
        },
    )
    stack.callback(cluster.stop)
    console.print(
        f"document: {text.source}, {text.token_count:,} tokens"
        f"{'' if text.whole else ' (its beginning)'}",
        markup=False,
    )
    with step(console, "starting cache service, billing and worker as separate processes"):
        cluster.start_billing()
        cluster.start_cache()
        cluster.start_worker()
    session = DemoSession(cluster, result, lambda line: console.print(f"      {line}"))
    status = stack.enter_context(console.status("running"))
    for number, title in enumerate(steps(Story(session, text)), start=1):
        console.print(f"[bold]\\[{number}/{STEPS}][/bold] {title}")
        status.update(f"step {number} of {STEPS}")
    status.stop()


def _console() -> Console:
    """Wide enough for the tables where the width is not a terminal's."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDTH_PIPED)


def _words(error: Exception) -> str:
    if isinstance(error, DocumentError):
        return str(error)
    if isinstance(error, grpc.RpcError):
        wire = read_error(error)
        return f"a request failed: {wire.message} [{wire.reason or wire.code.name}]"
    return str(error)
