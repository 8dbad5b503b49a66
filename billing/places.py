"""How many calls of a kind may be under way. Event loop only."""

from collections.abc import Iterator
from contextlib import contextmanager

from billing.errors import LedgerUnavailableError

__all__ = ["Places"]


class Places:
    """So many, and one more is refused."""

    def __init__(self, limit: int) -> None:
        self._free = limit

    @contextmanager
    def one(self) -> Iterator[None]:
        """Raises LedgerUnavailableError when none is free."""
        if not self._free:
            raise LedgerUnavailableError("too many calls are under way; send again")
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1
