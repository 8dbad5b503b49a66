"""Which leading tokens of a chat are shared more widely than the rest of it.

    public_prefix_directory/*.txt                              everybody
    organisation_prefix_directory/ORGANISATION/*.txt           the organisation
    organisation_prefix_directory/ORGANISATION/PROJECT/*.txt   the project

Invariant: a token is in a wider scope only where the prompt begins with the very tokens of a system
message that the operator declared for that scope or a wider one; nothing else a client sends widens
its scope. So a block's KV in a wider scope depends on the operator's texts alone. Immutable after
start, any thread.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvtier.scopes import ScopeLevel, ScopePath
from kvtier.settings import SettingsError
from worker.chat import ChatMessage, PromptEncoder

__all__ = ["SharedPrefixes", "load_shared_prefixes"]

SUFFIXES = frozenset({".txt", ".md"})
FILES_MAX = 256
"""In a folder: each is compared with every chat of its scope that has a system message."""
FOLDERS_MAX = 4096

Names = tuple[str, ...]


class SharedPrefixes:
    """The declared system messages, as tokens, by the names of the scope they are declared for."""

    def __init__(self, prefixes: Mapping[Names, Sequence[Sequence[int]]]) -> None:
        """Public ones are at the empty tuple."""
        self._prefixes = {
            names: [np.asarray(prefix, dtype=np.int64) for prefix in each]
            for names, each in prefixes.items()
            if each
        }

    def shared_tokens(self, path: ScopePath, token_ids: Sequence[int]) -> list[int]:
        """Where public and each rung above `path` end in a chat that begins with a system message.

        Tokens, ascending.
        """
        ends = []
        end = 0
        for level in range(path.level):
            prefixes = self._prefixes.get(path.names[:level], ())
            if prefixes:
                longest = max(len(prefix) for prefix in prefixes)
                prompt = np.asarray(token_ids[:longest], dtype=np.int64)
                end = max(end, max(_shared(prefix, prompt) for prefix in prefixes))
            ends.append(end)
        return ends


def load_shared_prefixes(
    public: Path | None, organisations: Path | None, encoder: PromptEncoder
) -> SharedPrefixes:
    """Every *.txt and *.md file's content is a system message. Raises SettingsError.

    Hidden files and folders are not looked at.
    """
    prefixes: dict[Names, Sequence[Sequence[int]]] = {}
    if public is not None:
        prefixes[()] = _load("public_prefix_directory", public, encoder)
    if organisations is not None:
        setting = "organisation_prefix_directory"
        if _texts(setting, organisations):
            raise SettingsError(
                f"{setting}: a text in {organisations} itself belongs to no organisation; put it"
                " into the folder of one"
            )
        for names, folder in _folders(setting, organisations, ()):
            prefixes[names] = _load(setting, folder, encoder)
            if len(prefixes) > FOLDERS_MAX:
                raise SettingsError(f"{setting}: at most {FOLDERS_MAX} folders")
    return SharedPrefixes(prefixes)


def _folders(setting: str, directory: Path, names: Names) -> Iterator[tuple[Names, Path]]:
    """Folders below `directory`, with the names of their scopes."""
    for folder in _entries(setting, directory):
        if not folder.is_dir():
            continue
        below = (*names, folder.name)
        if len(below) >= ScopeLevel.USER:
            raise SettingsError(
                f"{setting}: {folder} is too deep; folders are ORGANISATION or ORGANISATION/PROJECT"
            )
        try:
            ScopePath(*below)
        except ValueError as error:
            raise SettingsError(f"{setting}: {folder}: {error}") from None
        yield below, folder
        yield from _folders(setting, folder, below)


def _load(setting: str, directory: Path, encoder: PromptEncoder) -> list[Sequence[int]]:
    paths = _texts(setting, directory)
    if len(paths) > FILES_MAX:
        raise SettingsError(f"{setting}: {len(paths)} files in {directory}; at most {FILES_MAX}")
    try:
        texts = [path.read_text(encoding="utf-8") for path in paths]
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{setting}: {directory}: {error}") from None
    return [_system_tokens(text, encoder) for text in texts]


def _texts(setting: str, directory: Path) -> list[Path]:
    return [p for p in _entries(setting, directory) if p.suffix in SUFFIXES and p.is_file()]


def _entries(setting: str, directory: Path) -> list[Path]:
    try:
        return sorted(p for p in directory.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise SettingsError(f"{setting}: {directory}: {error}") from None


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
