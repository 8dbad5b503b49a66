"""ObjectStore: what an engine must do to be the shared tier. The whole seam.

Invariant: an object is read whole or not at all, as somebody wrote it, or as something broke it:
nothing here is believed, the reader checks. Names are ASCII, with "/" between their parts. Methods
are coroutines of one event loop that never block it; each raises TierIOError for whatever the
engine does, and may take for ever: its caller has deadlines and cancels.
"""

from collections.abc import Sequence
from typing import Protocol

__all__ = ["ObjectStore"]


class ObjectStore(Protocol):
    """Named, immutable objects."""

    @property
    def label(self) -> str:
        """What it is, for people: "directory", "s3", "mooncake"."""
        ...

    @property
    def names_at_once(self) -> int:
        """Names that `exists` should be asked for at once: more would be many requests."""
        ...

    async def exists(self, names: Sequence[str]) -> list[bool]:
        """Which are there, now."""
        ...

    async def read(self, name: str, bytes_max: int) -> memoryview | None:
        """All of it; None: it is not there. Raises ObjectTooLargeError for more than `bytes_max`,
        and takes no memory for it then."""
        ...

    async def write(self, name: str, content: memoryview) -> None:
        """Visible whole or not at all. Where it is already, either content may stay."""
        ...

    async def delete(self, names: Sequence[str]) -> None:
        """Those that are not there are passed over."""
        ...

    async def delete_below(self, prefix: str) -> int:
        """All names that begin so, with a "/" last; how many there were. What is given up half way
        has deleted some: again goes on."""
        ...

    async def close(self) -> None: ...
