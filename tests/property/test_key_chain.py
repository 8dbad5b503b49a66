"""Properties of the hash chain that sharing and isolation rest on."""

from hypothesis import given
from hypothesis import strategies as st

from kvtier.keys import (
    PUBLIC_SALT,
    PUBLIC_SCOPE,
    BlockChain,
    ChainScope,
    Namespace,
    ScopeSalt,
    block_chain,
    pack_hashes,
    unpack_hashes,
)

SPACE = Namespace("w", "l", "f32", 4, "r", "e")
SALT = ScopeSalt(b"a" * 32)
OTHER = ScopeSalt(b"b" * 32)
MINE = ChainScope((SALT,))


def under_public(salt: ScopeSalt, public: int) -> ChainScope:
    return ChainScope((PUBLIC_SALT, salt), (public,))


tokens = st.lists(st.integers(0, 2**32 - 1), max_size=40)


@given(tokens, st.lists(st.integers(0, 40), max_size=6), st.integers(0, 3))
def test_extending_in_pieces_gives_the_same_chain(
    ids: list[int], cuts: list[int], public: int
) -> None:
    chain = BlockChain(SPACE, under_public(SALT, public))
    start = 0
    for cut in sorted(cuts):
        chain.extend(ids[start:cut])
        start = max(start, min(cut, len(ids)))
    chain.extend(ids[start:])
    assert chain.hashes == block_chain(SPACE, under_public(SALT, public), ids)


@given(tokens, tokens)
def test_chains_agree_exactly_on_their_common_full_blocks(a: list[int], b: list[int]) -> None:
    common = 0
    while common < min(len(a), len(b)) and a[common] == b[common]:
        common += 1
    left, right = block_chain(SPACE, MINE, a), block_chain(SPACE, MINE, b)
    for index, (x, y) in enumerate(zip(left, right, strict=False)):
        assert (x == y) == ((index + 1) * 4 <= common)


@given(tokens, st.integers(0, 5))
def test_scopes_share_the_public_blocks_and_nothing_else(ids: list[int], public: int) -> None:
    mine = block_chain(SPACE, under_public(SALT, public), ids)
    theirs = block_chain(SPACE, under_public(OTHER, public), ids)
    everyone = block_chain(SPACE, PUBLIC_SCOPE, ids)
    for index in range(len(mine)):
        assert (mine[index] == theirs[index]) == (index < public)
        assert (mine[index] == everyone[index]) == (index < public)


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=8))
def test_packed_hashes_come_back_as_they_went(hashes: list[bytes]) -> None:
    assert unpack_hashes(pack_hashes(hashes)) == hashes  # type: ignore[arg-type]


@given(tokens, st.lists(st.integers(0, 12), min_size=2, max_size=2), st.integers(0, 12), tokens)
def test_a_branch_goes_on_under_the_rule_of_its_stem(
    ids: list[int], ends: list[int], cut: int, more: list[int]
) -> None:
    scope = ChainScope((PUBLIC_SALT, SALT, OTHER), (min(ends), max(ends)))
    stem = BlockChain(SPACE, scope)
    stem.extend(ids)
    count = min(cut, len(stem.hashes))
    before = list(stem.hashes)
    branch = stem.branch(count)
    branch.extend(more)
    assert branch.hashes == block_chain(SPACE, scope, [*ids[: count * 4], *more])
    assert stem.hashes == before
