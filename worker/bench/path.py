"""`kvtier bench path`: a prefix into the cache service and back, beside memory, wire and peers.

Standard output has the answer alone, tables or with --json one object; progress goes to standard
error. Exit status 1 when something could not be measured at all.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console

from kvtier.bench.figures import byte_sizes, machine, plain
from kvtier.bench.options import given
from kvtier.bench.tables import size, table_console
from kvtier.cli.progress import step
from kvtier.errors import KvtierError
from worker.bench.measure import (
    PassFigures,
    measure_other_host,
    measure_same_host,
    measure_under_tls,
)
from worker.bench.path_tables import show
from worker.bench.settings import PathSettings

__all__ = ["path", "run"]

_QUICK: dict[str, Any] = {
    "block_bytes": (256 << 10, 2 << 20),
    "prefix_bytes": 64 << 20,
    "rounds": 3,
    "single_blocks": 30,
    "fresh_starts": 1,
}
_FIELDS = {"blocks": "block_bytes", "prefix": "prefix_bytes", "rounds": "rounds"}


def path(
    context: typer.Context,
    blocks: Annotated[str, typer.Option(help="Block sizes, by comma.")] = "256KiB,1MiB,2MiB,8MiB",
    prefix: Annotated[str, typer.Option(help="Size of the prefix.")] = "256MiB",
    rounds: Annotated[int, typer.Option(min=1, help="Turns that everybody takes.")] = 5,
    peers: Annotated[
        Path | None,
        typer.Option(
            metavar="PYTHON",
            help="A Python with the peers' packages (mooncake-transfer-engine-non-cuda,"
            " lmcache, redis); what it lacks is named as absent.",
        ),
    ] = None,
    tls: Annotated[
        bool, typer.Option("--tls", help="Also the bulk lane under TLS, beside a raw TLS socket.")
    ] = False,
    quick: Annotated[
        bool, typer.Option(help="Small sizes where none are given: a look, not a measurement.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead.")] = False,
) -> None:
    """A prefix into the cache service and back, beside memcpy, a raw socket and other caches.

    Takes some minutes and up to 5 GiB of memory. What counts are the ratios: all take turns, so
    that they meet the same machine.
    """
    try:
        options: dict[str, Any] = {
            "block_bytes": byte_sizes(blocks),
            "prefix_bytes": byte_sizes(prefix)[0],
            "rounds": rounds,
            "peers": peers,
            "tls": tls,
        }
        if quick:
            options |= _QUICK | given(context, _FIELDS, options)
        result = run(PathSettings(**options))
    except (KvtierError, OSError, ValidationError) as error:
        print(f"kvtier: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        show(table_console(), result)


def run(settings: PathSettings) -> dict[str, Any]:
    """Everything, as plain data. Raises KvtierError, OSError."""
    same: list[PassFigures] = []
    other: list[PassFigures] = []
    under_tls: list[PassFigures] = []
    with step(Console(stderr=True), "starting") as told:
        for block_bytes in settings.block_bytes:
            for passes, measure, name in (
                (same, measure_same_host, "same host"),
                (other, measure_other_host, "other host"),
                *([(under_tls, measure_under_tls, "under TLS")] if settings.tls else []),
            ):
                said = _prefixed(told, f"{size(block_bytes)} blocks, {name}: ")
                passes.append(measure(settings, block_bytes, said))
    return {
        **machine(),
        "settings": plain(settings),
        "memcpy_GBps": _limit(same),
        "raw_socket_GBps": _limit(other),
        "raw_tls_socket_GBps": _limit(under_tls) if under_tls else None,
        "same_host": [row for figures in same for row in figures.ours],
        "other_host": [row for figures in other for row in figures.ours],
        "under_tls": [row for figures in under_tls for row in figures.ours],
        "peers": [row for figures in (*same, *other) for row in figures.peers],
    }


def _limit(passes: list[PassFigures]) -> float:
    return median(speed for figures in passes for speed in figures.limit_GBps)


def _prefixed(told: Callable[[str], None], prefix: str) -> Callable[[str], None]:
    return lambda text: told(prefix + text)
