"""`kvtier bench storage`: the SSD tier beside fio and RocksDB, and restarts with many blocks.

Standard output has the answer alone, tables or with --json one object; progress goes to standard
error. Exit status 1 when something could not be measured at all.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from cache_service.bench.tables import show
from kvtier.bench.figures import byte_sizes, machine, plain
from kvtier.bench.options import given
from kvtier.bench.tables import table_console
from storage.bench.blocks import measure_blocks
from storage.bench.fio import INSTALL_HINT, Fio
from storage.bench.restart_data import make_directory
from storage.bench.rocks import drop_page_cache
from storage.bench.settings import BenchSettings
from storage.errors import StorageError

__all__ = ["storage"]

_MIB = 1 << 20
_RESTARTS = 5
"""Of each kind; with and without the index in the page cache, by turns."""
_QUICK: dict[str, Any] = {
    "rounds": 4,
    "round_bytes": 128 * _MIB,
    "single_blocks": 30,
    "rocksdb_bytes": 64 * _MIB,
    "recovery_blocks": (100_000,),
}
_QUICK_RING = {"segment_bytes": 64 * _MIB, "capacity_bytes": 512 * _MIB}
_FIELDS = {
    "blocks": "block_bytes",
    "rounds": "rounds",
    "size": "round_bytes",
    "threads": "threads",
    "encrypted": "encrypted",
    "recovery": "recovery_blocks",
}


def storage(
    context: typer.Context,
    directory: Annotated[
        Path, typer.Option(help="On the file system to measure; must exist.", exists=True)
    ] = Path(),
    blocks: Annotated[str, typer.Option(help="Block sizes, by comma.")] = "256KiB,1MiB,2MiB,8MiB",
    rounds: Annotated[int, typer.Option(min=1, help="Turns that ours and fio take.")] = 6,
    size: Annotated[str, typer.Option(help="Payload moved in one turn, each way.")] = "512MiB",
    threads: Annotated[
        int, typer.Option(min=1, max=16, help="Threads of fio; the tier has its own.")
    ] = 4,
    recovery: Annotated[
        str, typer.Option(help="Restarts with so many blocks, by comma; empty for none.")
    ] = "100000,1000000",
    quick: Annotated[
        bool, typer.Option(help="Small sizes where none are given: a look, not a measurement.")
    ] = False,
    encrypted: Annotated[
        bool, typer.Option("--encrypted", help="Each block size a second time, encrypted.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead.")] = False,
) -> None:
    """The SSD tier beside fio and RocksDB on this disk, and restarts with many blocks.

    Takes a few minutes and at most 5 GiB of disk, given back at the end. What counts are the
    ratios: ours and fio take turns, so that both meet the same disk.
    """
    try:
        options: dict[str, Any] = {
            "directory": directory.absolute(),
            "block_bytes": byte_sizes(blocks),
            "rounds": rounds,
            "round_bytes": byte_sizes(size)[0],
            "threads": threads,
            "encrypted": encrypted,
            "recovery_blocks": tuple(int(text) for text in recovery.split(",") if text.strip()),
        }
        if quick:
            options |= quick_options(given(context, _FIELDS, options))
        settings = BenchSettings(**options)
        _check_room(settings)
        result = run(settings)
    except (StorageError, ValidationError, ValueError) as error:
        print(f"kvtier: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        show(table_console(), result)


def quick_options(chosen: dict[str, Any]) -> dict[str, Any]:
    """Of a quick run. What is given and does not fit the small ring goes round the usual one."""
    small_enough = (
        2 * chosen.get("round_bytes", 0) <= _QUICK_RING["capacity_bytes"]
        and 4 * max(chosen.get("block_bytes", (0,))) <= _QUICK_RING["segment_bytes"]
    )
    return _QUICK | (_QUICK_RING if small_enough else {}) | chosen


def run(settings: BenchSettings) -> dict[str, Any]:
    """Everything, as plain data."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with (
        Progress(*columns, console=Console(stderr=True), transient=True) as progress,
        tempfile.TemporaryDirectory(prefix="kvtier-bench-", dir=settings.directory) as name,
    ):
        task = progress.add_task("starting")

        def told(step: str) -> None:
            progress.update(task, description=step)

        sizes = settings.capacity_bytes, settings.round_bytes
        fio = Fio(Path(name), *sizes, settings.threads)
        results = [
            asdict(measure_blocks(settings, block_bytes, fio, told, encrypted=encrypted))
            for block_bytes in settings.block_bytes
            for encrypted in ((False, True) if settings.encrypted else (False,))
        ]
        restarts = [_restart(Path(name), count, told) for count in settings.recovery_blocks]
    return {**_machine(settings, fio), "results": results, "recovery": restarts}


def _restart(directory: Path, block_count: int, told: Callable[[str], None]) -> dict[str, Any]:
    path = directory / f"restart-{block_count}"
    make_directory(
        path,
        block_count,
        lambda done, total: told(f"{total:,} blocks indexed: making the index {done / total:.0%}"),
    )
    try:
        cold, warm = [], []
        for turn in range(_RESTARTS):
            told(f"{block_count:,} blocks indexed: restart {turn + 1} of {_RESTARTS}")
            # Writes out first: the disk is not to be busy with what making the index left.
            drop_page_cache(path / "index")
            cold.append(_one_restart(path, block_count))
            warm.append(_one_restart(path, block_count))
    finally:
        shutil.rmtree(path)
    medians = {name: median(run[name] for run in cold) for name in cold[0]}
    return {
        **medians,
        "seconds_max": max(run["seconds"] for run in cold),
        "warm_seconds": median(run["seconds"] for run in warm),
        "warm_seconds_max": max(run["seconds"] for run in warm),
        "warm_cpu_seconds": median(run["cpu_seconds"] for run in warm),
        "restarts": _RESTARTS,
    }


def _one_restart(path: Path, block_count: int) -> dict[str, float]:
    command = [sys.executable, "-m", "cache_service.bench.restart", str(path), str(block_count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"the restart failed: {done.stderr.strip().splitlines()[-1:]}")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def _machine(settings: BenchSettings, fio: Fio) -> dict[str, Any]:
    return {
        **machine(),
        "fio": "installed" if fio.installed else INSTALL_HINT,
        "settings": plain(settings),
    }


def _check_room(settings: BenchSettings) -> None:
    room = os.statvfs(settings.directory)
    free = room.f_bavail * room.f_frsize
    if free < settings.disk_bytes:
        raise ValueError(
            f"{settings.directory} has {free} bytes free and {settings.disk_bytes} are needed:"
            " choose another --directory, or a smaller --size or --quick"
        )
