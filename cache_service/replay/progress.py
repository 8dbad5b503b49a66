"""Progress on standard error for what takes more than a second, on a terminal only."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["Step", "progress_of"]

QUIET_SECONDS = 1.0
REFRESH_SECONDS = 0.1

Step = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, how much there is."""


@contextmanager
def progress_of(console: Console) -> Iterator[Step]:
    """Yields what to call as often as one likes; the bar goes when the block ends."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task("", total=None)
    due = time.monotonic() + QUIET_SECONDS

    def step(doing: str, done: int, total: int) -> None:
        nonlocal due
        now = time.monotonic()
        if now >= due:
            due = now + REFRESH_SECONDS
            bar.start()
            bar.update(task, description=doing, completed=done, total=total)

    try:
        yield step
    finally:
        bar.stop()
