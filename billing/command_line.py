"""What the commands of `kvtier usage` share: options, and how they print."""

import json
import os
import sys
from enum import Enum
from typing import Annotated

import typer
from rich.console import Console

__all__ = [
    "DEFAULT_ADDRESS",
    "Address",
    "Format",
    "FormatOption",
    "From",
    "JsonOption",
    "To",
    "console",
    "print_json",
]

PIPE_COLUMNS = 200
"""Width of a table that goes into a file or pipe: nothing there wraps at a screen's edge."""


class Format(Enum):
    """How to print."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


Address = Annotated[
    str,
    typer.Option(help="The billing service, HOST:PORT.", envvar="KVTIER_USAGE_ADDRESS"),
]
From = Annotated[
    str, typer.Option("--from", help="First moment, 2026-11-01 or 2026-11-01T08:00+08:00 (or UTC).")
]
To = Annotated[str, typer.Option("--to", help="Up to, not including, this moment.")]
FormatOption = Annotated[Format, typer.Option("--format", help="How to print.")]
JsonOption = Annotated[bool, typer.Option("--json", help="The same as --format json.")]
DEFAULT_ADDRESS = "127.0.0.1:7431"


def print_json(data: object) -> None:
    print(json.dumps(data, indent=2, ensure_ascii=False))


def console() -> Console:
    wide = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=PIPE_COLUMNS if wide else None)
