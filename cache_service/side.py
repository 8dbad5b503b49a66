"""Side: one of the concerns of the cache, as the cache itself sees it.

A side is built from the parts in a file of its own, and entered with one line in `cache.py`. What
it does for callers is its own; what the cache asks of every side is below. Event loop only.
"""

__all__ = ["Side"]


class Side:
    """Answers nothing and has nothing to do, where a side does not say otherwise."""

    def tick(self) -> None:
        """Starts what is due. Called every 200 ms, after what is overdue was ended."""

    def pins(self) -> dict[int, int]:
        """How often this side pins which row now; `check_integrity` adds up all sides'."""
        return {}

    def check_integrity(self) -> None:
        """Asserts what must hold within this side; for tests."""

    async def drain(self) -> None:
        """Finishes what runs. No new calls come; sides that were entered later still run."""
