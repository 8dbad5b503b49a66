"""Finds where a sample's text must stop, while it is still arriving.

Invariant: what is delivered depends on the whole text alone, never on how it was cut into pieces:
all text before the first match, where the match that completes first is the first (of those that
complete together, the longest). Text that may yet turn into a match is held back. Owned by one
request, on the event loop.
"""

from collections.abc import Sequence

__all__ = ["StopStrings"]


class StopStrings:
    """Takes text in pieces, gives back what may be delivered."""

    def __init__(self, stops: Sequence[str]) -> None:
        """`stops`: none of them empty."""
        self._stops = tuple(stops)
        self._held = ""
        self.matched = False
        """Once true, nothing more is delivered."""

    def push(self, piece: str) -> str:
        """The text that is safe to deliver now."""
        if self.matched:
            return ""
        text = self._held + piece
        match = self._first_match(text)
        if match is not None:
            self.matched = True
            self._held = ""
            return text[:match]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back and is no match after all. Ends the sample."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> int | None:
        """Start of the match that completes first."""
        found = []
        for stop in self._stops:
            start = text.find(stop)
            if start >= 0:
                found.append((start + len(stop), start))
        return min(found)[1] if found else None


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with, short of all of it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
