"""What a call was aimed at, in words that may be kept: counts, beginnings of hashes. Pure."""

from typing import Any

from google.protobuf.message import Message

__all__ = ["target_of"]

HASH_HEX_CHARS = 16
TEXT_CHARS_MAX = 64


def target_of(request: Any) -> str:
    """The fields that are set, shortened. Bytes appear by their beginning and their length."""
    return " ".join(f"{field.name}={_short(value)}" for field, value in request.ListFields())


def _short(value: Any) -> str:
    if isinstance(value, bytes):
        return f"{value.hex()[:HASH_HEX_CHARS]}({len(value)})"
    if isinstance(value, bool | int | float):
        return str(value)
    if isinstance(value, str):
        return value[:TEXT_CHARS_MAX]
    if isinstance(value, Message):
        return f"({target_of(value)})"
    return "set"
