"""`kvtier cache audit verify`: walks the audit log's chain on this machine.

Standard output has the outcome alone, a sentence or with --json one object. Exit status 1 when the
chain breaks, or a head that was kept elsewhere is not in it; 2 when there is nothing to walk.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from cache_service.audit.walk import Walked, walk

__all__ = ["audit_app"]

BROKEN = 1
NOTHING = 2

audit_app = typer.Typer(no_args_is_help=True, help="The record of operators' calls.")


@audit_app.callback()
def audit() -> None:
    """The record of operators' calls."""


@audit_app.command(short_help="Prove that no line was changed.")
def verify(
    directory: Annotated[
        Path, typer.Argument(help="The log: audit/ in the cache service's data directory.")
    ] = Path(".kvtier/cache/audit"),
    head: Annotated[
        str, typer.Option("--head", help="A hash kept elsewhere, that the chain must hold.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead.")] = False,
) -> None:
    """Walk the chain from the first line to the last; say where it breaks."""
    try:
        walked = walk(directory, head)
    except OSError as error:
        _nothing(f"cannot read {error.filename}: {error.strerror}")
    if not walked.file_count:
        _nothing(f"{directory} has no audit log; name the one in the service's data directory")
    problem = walked.problem or ("" if walked.had_head else f"no line has the hash {head}")
    print(json.dumps(_data(walked, problem), indent=2) if as_json else _text(walked, problem))
    if problem:
        raise typer.Exit(BROKEN)


def _data(walked: Walked, problem: str) -> dict[str, object]:
    return {
        "verified": not problem,
        "line_count": walked.head.number,
        "file_count": walked.file_count,
        "head_hash": walked.head.hash,
        "problem": problem,
    }


def _text(walked: Walked, problem: str) -> str:
    if problem:
        return f"the chain breaks after line {walked.head.number:,}: {problem}"
    return f"{walked.head.number:,} lines hold; head {walked.head.hash}"


def _nothing(problem: str) -> NoReturn:
    print(f"kvtier cache audit: {problem}", file=sys.stderr)
    raise typer.Exit(NOTHING)
