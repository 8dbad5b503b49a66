"""A chain is its hashes, whether one looks at them one by one or all at once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_service.chains import Chain, check_chain
from cache_service.errors import MalformedChainError, TooManyBlocksError
from kvtier.keys import BlockHash

hashes_of = st.lists(
    # Words from a small set, so that hashes share some and sometimes are the same.
    st.lists(st.sampled_from([bytes(8), b"8 bytes!", b"\xff" * 8]), min_size=4, max_size=4).map(
        lambda words: BlockHash(b"".join(words))
    ),
    max_size=12,
)


@given(hashes=hashes_of, start=st.integers(-13, 13), stop=st.integers(-13, 13))
def test_a_chain_is_the_sequence_of_its_hashes(
    hashes: list[BlockHash], start: int, stop: int
) -> None:
    chain = Chain.of(hashes)
    assert list(chain) == hashes
    assert len(chain) == len(hashes)
    assert [chain[at] for at in range(-len(hashes), len(hashes))] == [*hashes, *hashes]
    assert list(chain[start:stop]) == hashes[start:stop]
    assert list(chain[start:stop:3]) == hashes[start:stop:3]
    assert chain == Chain(b"".join(hashes))
    assert hash(chain) == hash(Chain(b"".join(hashes)))
    assert chain.words.tobytes() == chain.packed
    assert chain.words.shape == (len(hashes), 4)
    assert chain.repeats() == (len(set(hashes)) < len(hashes))


def test_an_index_outside_is_refused() -> None:
    chain = Chain.of([BlockHash(bytes(32))])
    for at in (1, -2):
        with pytest.raises(IndexError):
            chain[at]


def test_what_is_no_chain_is_refused() -> None:
    one, other = BlockHash(bytes(32)), BlockHash(b"x" * 32)
    with pytest.raises(MalformedChainError, match="33 bytes"):
        Chain(bytes(33))
    with pytest.raises(MalformedChainError, match="32 bytes"):
        check_chain([one, BlockHash(b"short")], 9)
    with pytest.raises(MalformedChainError, match="empty"):
        check_chain([], 9)
    with pytest.raises(MalformedChainError, match="twice"):
        check_chain([one, other, one], 9)
    with pytest.raises(TooManyBlocksError):
        check_chain([one, other], 1)
    assert check_chain([one, other], 2) == Chain(one + other)


def test_words_are_not_to_be_written() -> None:
    with pytest.raises(ValueError, match="read-only"):
        Chain(bytes(32)).words[0, 0] = np.uint64(1)
