"""Tokens of one sample -> text, piece by piece.

Invariant: the pieces joined are what decoding all tokens at once gives, and no piece ends inside a
character: its bytes are held back until the rest arrives. Owned by one request, on the event loop.
"""

from collections.abc import Callable, Sequence

__all__ = ["Decode", "Detokenizer"]

Decode = Callable[[Sequence[int]], str]
"""Token ids -> text; bytes that are no UTF-8 become U+FFFD."""

REPLACEMENT = "\ufffd"

WINDOW_TOKENS_MAX = 32
"""A character has at most four bytes, so a longer wait for its end means it has none."""


class Detokenizer:
    """Decodes a short window only, so each token costs the same however long the answer is.

    The window's first tokens are delivered already; they are decoded again because what a token
    means can depend on the one before it (a leading space, for example).
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._context: list[int] = []
        self._context_length = 0
        self._waiting: list[int] = []
        self._delivered_length = 0
        """Characters of the waiting tokens that went out already."""

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes; may be empty."""
        self._waiting.append(token_id)
        text = self._waiting_text()
        if text.endswith(REPLACEMENT) and len(self._waiting) < WINDOW_TOKENS_MAX:
            # An unfinished character reads as exactly one replacement, the last.
            settled = text[:-1]
            piece = settled[self._delivered_length :]
            self._delivered_length = max(self._delivered_length, len(settled))
            return piece
        return self._advance(text)

    def flush(self) -> str:
        """What is still held back, unfinished characters as U+FFFD. Ends the sample."""
        return self._advance(self._waiting_text()) if self._waiting else ""

    def _waiting_text(self) -> str:
        return self._decode([*self._context, *self._waiting])[self._context_length :]

    def _advance(self, text: str) -> str:
        piece = text[self._delivered_length :]
        self._context = self._waiting
        self._context_length = len(self._decode(self._context))
        self._waiting = []
        self._delivered_length = 0
        return piece
