"""Files of `kvtier receipt`: receipts as bytes, and token ids. A file that cannot be read or makes
no sense ends the command with status 2.
"""

import json
from pathlib import Path
from typing import Any

import typer

from billing.receipt import BYTES_MAX

__all__ = ["read_receipt", "read_tokens", "write_receipt"]

TOKENS_BYTES_MAX = 256 << 20


def read_receipt(path: Path) -> bytes:
    """At most a byte more than receipts have."""
    return _read(path, BYTES_MAX + 1, "FILE")


def read_tokens(path: Path) -> list[int]:
    """A JSON list of token ids, or an object that has it as `token_ids`."""
    try:
        data: Any = json.loads(_read(path, TOKENS_BYTES_MAX, "--tokens"))
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"{path} is not JSON: {error}", param_hint="--tokens") from None
    ids = data.get("token_ids") if isinstance(data, dict) else data
    if not isinstance(ids, list) or any(type(token) is not int for token in ids):
        raise typer.BadParameter(
            f"{path}: write a list of token ids, [1, 2, 3], or an object with it as token_ids"
            " (kvtier model tokens makes one from text)",
            param_hint="--tokens",
        )
    return ids


def write_receipt(path: Path, raw: bytes) -> None:
    try:
        path.write_bytes(raw)
    except OSError as error:
        raise typer.BadParameter(f"{path}: {error.strerror}", param_hint="--out") from None


def _read(path: Path, bytes_max: int, option: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(bytes_max)
    except OSError as error:
        raise typer.BadParameter(f"{path}: {error.strerror}", param_hint=option) from None
