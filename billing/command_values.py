"""What people type on the command line, as values: text, moments, periods, keys. Reads the files
that are named."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from google.protobuf.timestamp_pb2 import Timestamp

__all__ = ["option_public_key", "option_text", "option_time", "set_period"]


class _HasPeriod(Protocol):
    @property
    def start_time(self) -> Timestamp: ...
    @property
    def end_time(self) -> Timestamp: ...


def set_period(request: _HasPeriod, start: str, end: str) -> None:
    """Fills in what --from and --to say; nothing where they say nothing."""
    if start:
        request.start_time.CopyFrom(option_time("--from", start))
    if end:
        request.end_time.CopyFrom(option_time("--to", end))


def option_time(option: str, text: str) -> Timestamp:
    timestamp = Timestamp()
    try:
        time = datetime.fromisoformat(text)
        # In another zone, the first and the last hours of the calendar lie outside of it.
        timestamp.FromDatetime(time if time.tzinfo else time.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{text} is not a time; write 2026-11-01 or 2026-11-01T08:00:00Z", param_hint=option
        ) from None
    return timestamp


def option_text(option: str, text: str) -> str:
    """`text`, unless the shell gave bytes that are none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise typer.BadParameter("not UTF-8 text", param_hint=option) from None
    return text


def option_public_key(path: Path) -> bytes:
    """The raw Ed25519 key in the PEM file that --public-key names."""
    try:
        loaded = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{path}: {error}", param_hint="--public-key") from None
    if not isinstance(loaded, Ed25519PublicKey):
        raise typer.BadParameter(f"{path}: not an Ed25519 key", param_hint="--public-key")
    return loaded.public_bytes_raw()
