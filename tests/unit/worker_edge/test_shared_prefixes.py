"""Folders of declared system messages, and where a chat leaves them."""

from pathlib import Path
from typing import Any

import pytest

from kvtier.scopes import ScopePath
from kvtier.settings import SettingsError
from worker.shared_prefixes import FILES_MAX, SharedPrefixes, load_shared_prefixes

PUBLIC, ACME, SEARCH = [1, 2, 3], [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6, 7, 8]
DECLARED: dict[tuple[str, ...], list[list[int]]] = {
    (): [PUBLIC, [9, 9]],
    ("acme",): [ACME],
    ("acme", "search"): [SEARCH],
    ("umbra",): [[1, 2, 3, 4, 5, 6, 7, 8, 9]],
}


class Letters:
    """A tokenizer of one token a letter: `system text`, a mark, `user text`."""

    def chat_tokens(self, messages: Any) -> tuple[int, ...]:
        return tuple(ord(c) for m in messages for c in (*m.content, "|"))


@pytest.mark.parametrize(
    ("path", "prompt", "ends"),
    [
        ("acme", [*SEARCH, 0], [3]),
        ("acme/search", [*SEARCH, 0], [3, 6]),
        ("acme/search/ann", [*SEARCH, 0], [3, 6, 8]),
        ("acme/other/ann", [*SEARCH, 0], [3, 6, 6]),
        # Another organisation's text is nothing to this one.
        ("solo/search/ann", [*SEARCH, 0], [3, 3, 3]),
        # Leaves the declared texts early; a part of one counts as far as it goes.
        ("acme/search/ann", [1, 2, 3, 4, 0], [3, 4, 4]),
        ("acme/search/ann", [1, 2, 0], [2, 2, 2]),
        ("acme/search/ann", [5], [0, 0, 0]),
        ("acme/search/ann", [9, 9, 1], [2, 2, 2]),
    ],
)
def test_each_rung_ends_where_the_last_text_of_it_or_a_wider_one_does(
    path: str, prompt: list[int], ends: list[int]
) -> None:
    assert SharedPrefixes(DECLARED).shared_tokens(ScopePath.parse(path), prompt) == ends


def write(root: Path, *files: str) -> Path:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(Path(name).stem)
    return root


def load(public: Path | None, organisations: Path | None) -> SharedPrefixes:
    return load_shared_prefixes(public, organisations, Letters())  # type: ignore[arg-type]


def test_folders_are_scopes(tmp_path: Path) -> None:
    public = write(tmp_path / "public", "ab.txt", "skipped.json")
    below = write(tmp_path / "below", "acme/abcd.md", "acme/search/abcdef.txt", "acme/x.json")
    prefixes = load(public, below)
    prompt = [ord(c) for c in "abcdefgh"]
    assert prefixes.shared_tokens(ScopePath("acme", "search", "ann"), prompt) == [2, 4, 6]
    assert prefixes.shared_tokens(ScopePath("umbra", "search", "ann"), prompt) == [2, 2, 2]


def test_hidden_folders_are_no_scopes(tmp_path: Path) -> None:
    """A mounted configuration volume keeps its versions in such."""
    below = write(tmp_path / "below", "..data/acme/abcd.txt", ".git/x/y/z/abcd.txt", ".abcd.txt")
    prompt = [ord(c) for c in "abcdefgh"]
    assert load(None, below).shared_tokens(ScopePath("acme", "p"), prompt) == [0, 0]


@pytest.mark.parametrize(
    ("file", "word"),
    [
        ("abcd.txt", "belongs to no organisation"),
        ("acme/search/ann/abcd.txt", "too deep"),
        ("a cme/abcd.txt", "invisible"),
        ("acme/a,b/abcd.txt", "invisible"),
    ],
)
def test_texts_in_no_scope_are_refused(tmp_path: Path, file: str, word: str) -> None:
    with pytest.raises(SettingsError, match=word) as refusal:
        load(None, write(tmp_path / "below", file))
    assert "organisation_prefix_directory" in str(refusal.value)


def test_too_many_texts_missing_folders_and_wrong_bytes_are_refused(tmp_path: Path) -> None:
    many = write(tmp_path / "many", *(f"acme/{n}.txt" for n in range(FILES_MAX + 1)))
    with pytest.raises(SettingsError, match="at most"):
        load(None, many)
    with pytest.raises(SettingsError, match="public_prefix_directory"):
        load(tmp_path / "none", None)
    with pytest.raises(SettingsError, match="organisation_prefix_directory"):
        load(None, tmp_path / "none")
    (tmp_path / "acme").mkdir()
    (tmp_path / "acme" / "bytes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="acme"):
        load(None, tmp_path)
