"""`kvtier model tokens`: a prompt's token ids, as a worker makes them, without any service. They
are what a receipt is checked with.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from kvtier.errors import KvtierError
from worker.transformers_version import check_transformers

__all__ = ["tokens"]

REFUSED = 1


def tokens(
    directory: Annotated[
        Path,
        typer.Argument(
            help="A Hugging Face checkpoint; its tokenizer is enough.", show_default=False
        ),
    ],
    text: Annotated[
        Path | None,
        typer.Option("--text", help="A plain prompt's file, UTF-8; - is standard input."),
    ] = None,
    messages: Annotated[
        Path | None,
        typer.Option(
            "--messages",
            help='A chat\'s file, JSON: a list of {"role": .., "content": ..}, or messages; - is'
            " standard input.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write them to this file.")] = None,
) -> None:
    """Token ids of a prompt, as JSON, with the checkpoint's tokenizer and chat template: what a
    worker that serves it makes of the same text or chat. `kvtier receipt verify --tokens` takes
    it."""
    if (text is None) == (messages is None):
        raise typer.BadParameter("give one of --text and --messages")
    try:
        check_transformers()
        ids = _text_ids(directory, text) if text is not None else _chat_ids(directory, messages)
    except KvtierError as error:
        _fail(f"{error.reason}: {error}")
    made = json.dumps({"token_ids": ids}) + "\n"
    if out is None:
        print(made, end="")
        return
    try:
        out.write_text(made)
    except OSError as error:
        raise typer.BadParameter(f"{out}: {error.strerror}", param_hint="--out") from None
    print(f"{len(ids):,} tokens in {out}")


def _text_ids(directory: Path, path: Path) -> list[int]:
    # Late: --help should not take the seconds that the tokenizer's library takes.
    from worker.chat import load_prompt_encoder

    return list(load_prompt_encoder(directory).text_tokens(_read(path, "--text")))


def _chat_ids(directory: Path, path: Path | None) -> list[int]:
    from worker.chat import ChatMessage, load_prompt_encoder

    assert path is not None, "one of both is given"
    chat = [
        ChatMessage(each["role"], each["content"])
        for each in _chat(_read(path, "--messages"), path)
    ]
    return list(load_prompt_encoder(directory).chat_tokens(chat))


def _chat(raw: str, path: Path) -> list[dict[str, str]]:
    try:
        data: Any = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"{path} is not JSON: {error}", param_hint="--messages") from None
    said = data.get("messages") if isinstance(data, dict) else data
    if not isinstance(said, list) or not all(
        isinstance(each, dict)
        and isinstance(each.get("role"), str)
        and isinstance(each.get("content"), str)
        for each in said
    ):
        raise typer.BadParameter(
            f'{path}: write [{{"role": "user", "content": ".."}}], or an object with that as'
            " messages",
            param_hint="--messages",
        )
    return said


def _read(path: Path, option: str) -> str:
    try:
        raw = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        return raw.decode()
    except OSError as error:
        raise typer.BadParameter(f"{path}: {error.strerror}", param_hint=option) from None
    except UnicodeDecodeError:
        raise typer.BadParameter(f"{path} is not UTF-8", param_hint=option) from None


def _fail(problem: str) -> NoReturn:
    print(f"kvtier model tokens: {problem}", file=sys.stderr)
    raise typer.Exit(REFUSED)
