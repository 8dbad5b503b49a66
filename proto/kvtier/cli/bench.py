"""`kvtier bench ...`: benchmarks that rooms contribute, each loaded only when it is named.

Main thread only.
"""

import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points

import typer

__all__ = ["app"]

ENTRY_POINTS = "kvtier.benchmarks"
"""Name of the benchmark -> a function that typer makes a command of."""

_HELP = {
    "gateway": "What the gateway adds to a first token, and how many small requests it takes.",
    "lookup": "Lookups of many keys at once, by many clients, with up to millions of blocks.",
    "metering": "Usage events through journal, delivery and ledger, and a report over a month.",
    "path": "A prefix into the cache service and back, beside memcpy, a raw socket, other caches.",
    "storage": "The SSD tier beside fio and RocksDB on this disk, and restarts with many blocks.",
    "ttft": "Time to the first token, cold and from every tier, beside plain transformers.",
}

app = typer.Typer(no_args_is_help=True, help="Measure this machine, limits beside the figures.")


@app.callback()
def bench() -> None:
    """Measure this machine, limits beside the figures."""


def _command(entry: EntryPoint) -> Callable[..., None]:
    if entry.name in sys.argv[2:3]:
        loaded: Callable[..., None] = entry.load()
        return loaded
    return lambda: None


for _entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name):
    app.command(_entry.name, help=_HELP.get(_entry.name))(_command(_entry))
