"""What `kvtier generate` and `kvtier chat` may say of the cache: options, and their words on the
wire. Pure; the worker judges whether they go together."""

from enum import StrEnum
from typing import Annotated

import typer

from kvtier.v1 import inference_pb2

__all__ = ["CacheTimeout", "CacheUse", "OneOff", "Use", "set_cache"]


class Use(StrEnum):
    """Values of --cache."""

    DEFAULT = "default"
    READ_ONLY = "read-only"
    NO_STORE = "no-store"


CacheUse = Annotated[
    Use,
    typer.Option("--cache", help="What the request may do with the cache; no-store: nothing."),
]
CacheTimeout = Annotated[
    float | None,
    typer.Option(
        "--cache-timeout",
        min=0.0,
        max=3600.0,
        metavar="SECONDS",
        help="Wait for cached blocks at most so long, then compute; 0 asks only the worker.",
    ),
]
OneOff = Annotated[
    bool, typer.Option("--one-off", help="The prompt will not come again: keep others' instead.")
]

_MODES = {
    Use.DEFAULT: inference_pb2.CACHE_MODE_UNSPECIFIED,
    Use.READ_ONLY: inference_pb2.CACHE_MODE_READ_ONLY,
    Use.NO_STORE: inference_pb2.CACHE_MODE_BYPASS,
}


def set_cache(
    request: inference_pb2.GenerateRequest, use: Use, timeout_seconds: float | None, one_off: bool
) -> None:
    """Writes the options into `request`."""
    request.cache_mode = _MODES[use]
    request.one_off = one_off
    if timeout_seconds is not None:
        request.cache_timeout.FromNanoseconds(round(timeout_seconds * 1e9))
