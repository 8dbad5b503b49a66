"""Tables of benchmarks: 100 columns, limits beside the figures, red what misses one."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

__all__ = ["at_least", "at_most", "bench_table", "number", "size", "table_console"]

_WIDTH = 100
"""Where no terminal says."""


def table_console() -> Console:
    """Standard output, wide enough for a table also when it is a file."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=_WIDTH)


def bench_table(title: str, *names: str) -> Table:
    """A table without rows yet; figures to the right."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.show_edge = False
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def size(size_bytes: int) -> str:
    mib = 1 << 20
    return f"{size_bytes // mib} MiB" if size_bytes >= mib else f"{size_bytes // 1024} KiB"


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def at_least(value: float | None, limit: float | None, digits: int = 2) -> str:
    """Marked as held or missed; None for what was not measured, or has no limit."""
    text = number(value, digits)
    return text if value is None or limit is None else _marked(text, value >= limit)


def at_most(value: float, limit: float | None, digits: int = 2) -> str:
    text = number(value, digits)
    return text if limit is None else _marked(text, value <= limit)


def _marked(text: str, held: bool) -> str:
    return f"[{'green' if held else 'red'}]{text}{'' if held else '!'}[/]"
