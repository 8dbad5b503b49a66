"""What a command says while it works: a spinner on a terminal, a line per step elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

__all__ = ["Say", "step"]

Say = Callable[[str], None]


@contextmanager
def step(console: Console, title: str) -> Iterator[Say]:
    """Shows `title` until the block ends; what it yields shows how far the step is."""
    if not console.is_terminal:

        def line(text: str) -> None:
            console.print(text, markup=False, highlight=False, soft_wrap=True)

        line(title)
        yield line
        return
    with console.status(title) as status:
        yield status.update
