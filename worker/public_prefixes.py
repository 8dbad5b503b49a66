"""Which leading tokens of a chat are public.

Invariant: a token is public only where the prompt begins with the very tokens of a system message
that the operator registered; nothing else a client sends widens its scope. So a public block's KV
depends on the operator's text alone. Immutable after start, any thread.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvtier.settings import SettingsError
from worker.chat import ChatMessage, PromptEncoder

__all__ = ["PublicPrefixes", "load_public_prefixes"]

SUFFIXES = frozenset({".txt", ".md"})
FILES_MAX = 256
"""Each is compared with every chat that has a system message."""


class PublicPrefixes:
    """The registered system messages, as tokens."""

    def __init__(self, prefixes: Sequence[Sequence[int]]) -> None:
        self._prefixes = [np.asarray(prefix, dtype=np.int64) for prefix in prefixes]

    @property
    def count(self) -> int:
        return len(self._prefixes)

    def public_tokens(self, token_ids: Sequence[int]) -> int:
        """How many leading tokens of a chat that begins with a system message are public."""
        if not self._prefixes:
            return 0
        longest = max(len(prefix) for prefix in self._prefixes)
        prompt = np.asarray(token_ids[:longest], dtype=np.int64)
        return max(_shared(prefix, prompt) for prefix in self._prefixes)


def load_public_prefixes(directory: Path | None, encoder: PromptEncoder) -> PublicPrefixes:
    """Every *.txt and *.md file's content is a system message. Raises SettingsError."""
    if directory is None:
        return PublicPrefixes(())
    try:
        paths = sorted(p for p in directory.iterdir() if p.suffix in SUFFIXES and p.is_file())
        texts = [path.read_text(encoding="utf-8") for path in paths]
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"public_prefix_directory: {directory}: {error}") from None
    if len(paths) > FILES_MAX:
        raise SettingsError(
            f"public_prefix_directory: {len(paths)} files in {directory}; at most {FILES_MAX}"
        )
    return PublicPrefixes([_system_tokens(text, encoder) for text in texts])


def _system_tokens(text: str, encoder: PromptEncoder) -> Sequence[int]:
    """What every chat under the system message `text` begins with.

    Two chats that differ from the first user character on tell where that ends; templates that
    refuse a system message alone allow this too.
    """
    system = ChatMessage("system", text)
    one = encoder.chat_tokens([system, ChatMessage("user", "a")])
    other = encoder.chat_tokens([system, ChatMessage("user", "1")])
    length = _shared(np.asarray(one, dtype=np.int64), np.asarray(other, dtype=np.int64))
    return one[:length]


def _shared(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """Length of the longest common prefix."""
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length
