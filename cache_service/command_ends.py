"""How a command of `kvtier cache` ends when it cannot go on, and the digits it was given.

One line on standard error and an exit status: 1 when a service refused or cannot be asked, 2 when
the command makes no sense.
"""

import sys
from string import hexdigits
from typing import NoReturn

import typer

from kvtier.keys import HASH_BYTES

__all__ = ["FAILED", "MISUSED", "digits", "fail", "misused"]

FAILED = 1
MISUSED = 2


def fail(problem: str) -> NoReturn:
    """Raises typer.Exit."""
    print(f"kvtier cache: {problem}", file=sys.stderr)
    raise typer.Exit(FAILED)


def misused(command: str, problem: str) -> NoReturn:
    """Raises typer.Exit."""
    print(f"kvtier cache {command}: {problem}", file=sys.stderr)
    raise typer.Exit(MISUSED)


def digits(command: str, option: str, text: str) -> bytes:
    """The hash of a block or a namespace, given in hexadecimal digits. Raises typer.Exit."""
    if len(text) != 2 * HASH_BYTES or text.strip(hexdigits):
        misused(command, f"{option} takes {2 * HASH_BYTES} hexadecimal digits")
    return bytes.fromhex(text)
