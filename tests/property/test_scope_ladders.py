"""Random ladders: who shares a block, who is let into which scope, and what is public.

The rules are written here a second time, without salts and without hashes, and compared.
"""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.keys import ChainScope, Namespace, block_chain
from kvtier.scopes import MalformedScopeError, ScopeLevel, ScopePath, chain_scope, scope_salt
from worker.errors import InvalidScopeError, ScopeTooWideError, TenantUnknownError
from worker.shared_prefixes import SharedPrefixes
from worker.tenants import Caller, Grant, Tenants

SPACE = Namespace("w", "l", "f32", 2, "r", "e")
SECRET = bytes(range(32))
BLOCKS = 6

# Names that run into each other when they are put together carelessly, and twins in unicode.
NAMES = ("a", "b", "ab", "A", "ba", "\u00e9", "e\u0301", "a\uff0fb", "..", "a:b")

names = st.sampled_from(NAMES)
paths = st.builds(
    lambda parts: ScopePath(*parts), st.lists(names, min_size=1, max_size=3).map(tuple)
)
tokens = st.lists(st.integers(0, 1), min_size=2 * BLOCKS, max_size=2 * BLOCKS)


@st.composite
def requests(draw: st.DrawFn) -> tuple[ScopePath, list[int], list[int]]:
    """A scope, where the wider ones end, and a prompt."""
    path = draw(paths)
    ends = draw(st.lists(st.integers(0, BLOCKS), min_size=path.level, max_size=path.level))
    return path, sorted(ends), draw(tokens)


def scope_of(path: ScopePath, ends: list[int], index: int) -> tuple[str, ...]:
    """Names of the scope that block `index` is in; none for public."""
    for rung, end in enumerate(ends):
        if index < end:
            return path.names[:rung]
    return path.names


def meaning(request: tuple[ScopePath, list[int], list[int]], index: int) -> object:
    """Everything that block `index` stands for: tokens and scopes up to it."""
    path, ends, ids = request
    return ids[: (index + 1) * 2], [scope_of(path, ends, i) for i in range(index + 1)]


@given(requests(), requests())
def test_a_block_is_shared_exactly_when_tokens_and_scopes_up_to_it_are_equal(
    mine: tuple[ScopePath, list[int], list[int]], theirs: tuple[ScopePath, list[int], list[int]]
) -> None:
    left, right = (
        block_chain(SPACE, chain_scope(SECRET, path, ends), ids)
        for path, ends, ids in (mine, theirs)
    )
    for i, one in enumerate(left):
        for j, other in enumerate(right):
            assert (one == other) == (meaning(mine, i) == meaning(theirs, j))


@given(requests(), st.binary(min_size=32, max_size=64))
def test_nobody_names_a_private_block_without_the_secret(
    request: tuple[ScopePath, list[int], list[int]], guess: bytes
) -> None:
    path, ends, ids = request
    right = block_chain(SPACE, chain_scope(SECRET, path, ends), ids)
    guessed = block_chain(SPACE, chain_scope(guess, path, ends), ids)
    for index, (one, other) in enumerate(zip(right, guessed, strict=True)):
        public = all(scope_of(path, ends, i) == () for i in range(index + 1))
        assert (one == other) == (public or guess == SECRET)


@given(
    st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=3),
    st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=3),
)
def test_different_scope_paths_get_different_salts(a: list[str], b: list[str]) -> None:
    assert (scope_salt(SECRET, *a) == scope_salt(SECRET, *b)) == (a == b)


@given(st.lists(st.integers(-1, 4), max_size=4), st.integers(1, 4))
def test_a_chain_never_widens(ends: list[int], salts: int) -> None:
    scopes = chain_scope(SECRET, ScopePath("a", "b", "c"), (0, 0, 0)).salts[:salts]
    if len(ends) == salts - 1 and all(x <= y for x, y in pairwise([0, *ends])):
        chain = ChainScope(scopes, tuple(ends))
        order = [scopes.index(chain.salt_of(i)) for i in range(6)]
        assert order == sorted(order)
    else:
        with pytest.raises(ValueError, match=r"scope"):
            ChainScope(scopes, tuple(ends))


@given(st.text(max_size=140), st.text(max_size=140), st.text(max_size=140))
def test_a_path_is_read_back_as_it_was_written_or_refused(
    organisation: str, project: str, user: str
) -> None:
    try:
        path = ScopePath(organisation, project, user)
    except MalformedScopeError:
        return
    assert ScopePath.parse(str(path)) == path
    assert str(path).count("/") + 1 == path.level


@given(
    st.sets(paths, min_size=1, max_size=4),
    names,
    st.sampled_from(("", *NAMES)),
    st.sampled_from(("", *NAMES)),
    st.sampled_from((None, *ScopeLevel)),
)
def test_a_request_stays_within_its_grant_and_its_own_names(
    grants: set[ScopePath],
    tenant: str,
    project: str,
    user: str,
    wanted: ScopeLevel | None,
) -> None:
    tenants = Tenants([Grant(path) for path in sorted(grants, key=str)], SECRET)
    caller = tuple(name for name in (tenant, project, user) if name)
    covering = [g.names for g in grants if caller[: g.level] == g.names]
    try:
        scope = tenants.scope(Caller(tenant, project, user, wanted))
    except InvalidScopeError:
        assert (user and not project) or (wanted is not None and wanted > len(caller))
    except TenantUnknownError:
        assert not covering
    except ScopeTooWideError:
        assert wanted is not None
        assert wanted < max(map(len, covering))
    else:
        assert scope.names == caller[: scope.level]
        assert scope.level >= max(map(len, covering))
        assert scope.level == (wanted or max(map(len, covering)))


texts = st.lists(st.integers(0, 1), min_size=1, max_size=8)


@given(
    st.dictionaries(paths.map(lambda p: p.names[:2]) | st.just(()), st.lists(texts, max_size=3)),
    paths,
    texts,
)
def test_a_token_is_shared_only_where_a_declared_text_of_that_scope_goes(
    declared: dict[tuple[str, ...], list[list[int]]], path: ScopePath, prompt: list[int]
) -> None:
    ends = SharedPrefixes(declared).shared_tokens(path, prompt)
    assert len(ends) == path.level
    for rung, end in enumerate(ends):
        wide_enough = [t for depth in range(rung + 1) for t in declared.get(path.names[:depth], [])]
        common = [
            next(
                (i for i, (x, y) in enumerate(zip(t, prompt, strict=False)) if x != y),
                min(len(t), len(prompt)),
            )
            for t in wide_enough
        ]
        assert end == max(common, default=0)
