"""Scope paths: what can be a name, and that two spellings are two scopes."""

import pytest

from kvtier.keys import PUBLIC_SALT
from kvtier.scopes import (
    SCOPE_NAME_CHARACTERS_MAX,
    MalformedScopeError,
    ScopeLevel,
    ScopePath,
    chain_scope,
    scope_salt,
)

SECRET = bytes(range(32))


@pytest.mark.parametrize(
    "name",
    [
        " ",
        "a b",
        "a/b",
        "*",
        "a,b",
        "a\nb",
        "a\x00",
        "\u00a0",  # no-break space
        "a\u200bb",  # zero width space
        "a\u202eb",  # right-to-left override
        "\ud800",  # half a character
        "x" * (SCOPE_NAME_CHARACTERS_MAX + 1),
    ],
)
@pytest.mark.parametrize("place", range(3))
def test_names_with_spaces_invisible_or_reserved_characters_are_refused(
    name: str, place: int
) -> None:
    names = ["a", "b", "c"]
    names[place] = name
    with pytest.raises(MalformedScopeError, match=("organisation", "project", "user")[place]):
        ScopePath(*names)


@pytest.mark.parametrize("names", [("",), ("", "p"), ("", "", "u"), ("o", "", "u")])
def test_a_path_has_no_gap(names: tuple[str, ...]) -> None:
    with pytest.raises(MalformedScopeError):
        ScopePath(*names)


@pytest.mark.parametrize("text", ["", "/", "a/", "/a", "a//u", "a/b/c/d"])
def test_text_with_an_empty_or_a_fourth_name_is_no_path(text: str) -> None:
    with pytest.raises(MalformedScopeError):
        ScopePath.parse(text)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("ab",), ("a", "b")),
        (("a", "bc"), ("ab", "c")),
        (("a", "b", "c"), ("a", "bc")),
        (("a", "p"), ("b", "p")),
        (("Acme",), ("acme",)),
        (("\u00e9",), ("e\u0301",)),  # the same letter to the eye
        (("\uff41",), ("a",)),  # its full-width twin
        (("a", "x"), ("x", "a")),
        # A name that spells the length prefix of the next one.
        (("a\x01\x00\x00\x00b",), ("a", "b")),
    ],
)
def test_paths_that_look_alike_are_two_scopes(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    assert scope_salt(SECRET, *one) != scope_salt(SECRET, *other)


def test_the_ladder_of_a_user_has_public_and_every_rung_above() -> None:
    scope = chain_scope(SECRET, ScopePath("o", "p", "u"), (0, 0, 0))
    assert scope.salts == (
        PUBLIC_SALT,
        scope_salt(SECRET, "o"),
        scope_salt(SECRET, "o", "p"),
        scope_salt(SECRET, "o", "p", "u"),
    )


def test_a_path_knows_its_rungs() -> None:
    path = ScopePath("o", "p", "u")
    assert path.level is ScopeLevel.USER
    assert path.at(ScopeLevel.PROJECT) == ScopePath("o", "p")
    assert ScopePath("o", "p").covers(path)
    assert not path.covers(ScopePath("o", "p"))
    assert not ScopePath("o", "q").covers(path)
    for level in (ScopeLevel.PUBLIC, ScopeLevel.USER):
        with pytest.raises(ValueError, match="no rung"):
            ScopePath("o", "p").at(level)


def test_a_short_secret_and_an_empty_path_are_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        scope_salt(b"short", "o")
    for path in ((), ("o", "")):
        with pytest.raises(ValueError, match="non-empty"):
            scope_salt(SECRET, *path)
