"""`kvtier bench lookup`: how fast is a lookup of many keys, and does it matter how much is cached?

Standard output has the answer alone, a table or with --json one object; progress goes to standard
error. Exit status 1 when something could not be measured at all.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from cache_service.bench.lookup_rounds import measure_lookups
from cache_service.bench.lookup_settings import LookupSettings
from cache_service.bench.lookup_tables import show
from kvtier.bench.errors import BenchError
from kvtier.bench.figures import machine, plain
from kvtier.bench.options import given
from kvtier.bench.service import cache_service_process
from kvtier.bench.tables import table_console
from kvtier.cli.progress import step
from kvtier.errors import KvtierError
from storage.bench.restart_data import SEGMENT_BYTES, capacity_bytes, make_directory

__all__ = ["lookup", "run"]

_ARENA_BYTES = 64 << 20
_QUICK: dict[str, Any] = {
    "cached_blocks": (10_000, 1_000_000),
    "rounds": 3,
    "round_seconds": 0.5,
}
_FIELDS = {
    "cached": "cached_blocks",
    "keys": "keys_per_call",
    "clients": "clients",
    "rounds": "rounds",
}
_MAKING_STEPS = 10


def lookup(
    context: typer.Context,
    directory: Annotated[
        Path, typer.Option(help="For the indexes, some GiB; must exist.", exists=True)
    ] = Path(),
    cached: Annotated[str, typer.Option(help="Cached blocks, by comma.")] = "10000,1000000,5000000",
    keys: Annotated[str, typer.Option(help="Keys a call, by comma.")] = "256,2048",
    clients: Annotated[str, typer.Option(help="Client processes, by comma.")] = "1,8",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of a second each.")] = 5,
    transports: Annotated[
        str,
        typer.Option(
            help="By comma: line (the session line), unix and loopback (gRPC through a Unix"
            " socket, and over TCP)."
        ),
    ] = "line,unix",
    quick: Annotated[
        bool,
        typer.Option(help="Where nothing else is given, few short rounds and a million blocks."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead.")] = False,
) -> None:
    """Lookups of many keys at once, by many clients, with up to millions of blocks.

    Takes some minutes, most of them to make an index of five million blocks.
    """
    try:
        options: dict[str, Any] = {
            "directory": directory.absolute(),
            "cached_blocks": _numbers(cached),
            "keys_per_call": _numbers(keys),
            "clients": _numbers(clients),
            "rounds": rounds,
            "transports": tuple(transports.split(",")),
        }
        if quick:
            options |= _QUICK | given(context, _FIELDS, options)
        result = run(LookupSettings(**options))
    except (KvtierError, OSError) as error:
        print(f"kvtier: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        show(table_console(), result)


def run(settings: LookupSettings) -> dict[str, Any]:
    """Everything, as plain data. Raises KvtierError, OSError."""
    with (
        step(Console(stderr=True), "starting") as told,
        tempfile.TemporaryDirectory(prefix="kvtier-bench-", dir=settings.directory) as name,
    ):
        own = replace(settings, directory=Path(name))
        results = [row for count in own.cached_blocks for row in _rows(own, count, told)]
    return {**machine(), "settings": plain(settings), "results": results}


def _rows(
    settings: LookupSettings, cached_blocks: int, told: Callable[[str], None]
) -> list[dict[str, Any]]:
    """A service that recovers so many blocks; a row for each number of keys and clients."""
    data = settings.directory / f"data-{cached_blocks}"
    steps = max(1, cached_blocks // _MAKING_STEPS)
    last = -1

    def making(done: int, total: int) -> None:
        nonlocal last
        if done // steps != last:
            last = done // steps
            told(f"{total:,} blocks: making the index, {done / total:.0%}")

    data.mkdir()
    make_directory(data / "ssd", cached_blocks, making)
    told(f"{cached_blocks:,} blocks: the service starts")
    rows = []
    try:
        with (
            tempfile.TemporaryDirectory(prefix="kvb-") as sockets,
            cache_service_process(
                {
                    "data_directory": data,
                    "unix_socket": f"{sockets}/cache.sock",
                    "host.capacity_bytes": _ARENA_BYTES,
                    "ssd.capacity_bytes": capacity_bytes(cached_blocks),
                    "ssd.segment_bytes": SEGMENT_BYTES,
                    "ssd.scrub_bytes_per_second": 0,
                }
            ) as service,
        ):
            addresses = dict.fromkeys(settings.transports, f"unix:{sockets}/cache.sock")
            addresses |= {"loopback": service.address}
            for keys, count, name in product(
                settings.keys_per_call, settings.clients, settings.transports
            ):
                told(f"{cached_blocks:,} blocks, {keys:,} keys a call, {count} clients, {name}")
                rows.append(
                    measure_lookups(
                        settings,
                        addresses[name],
                        name,
                        service.process.pid,
                        *(cached_blocks, keys, count),
                    )
                )
    finally:
        shutil.rmtree(data)
    return rows


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise BenchError(f"{text!r} is not numbers by comma") from None
