"""Digests of a prompt: what each commits to, and what they tell nobody."""

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.keys import NamespaceId
from kvtier.prompt_proof import (
    commitment,
    namespace_mark,
    prefix_digests,
    proof_key,
    request_salt,
)

SECRET = b"s" * 32
TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=300)


@given(TOKENS, st.data())
def test_a_digest_is_that_of_the_tokens_before_it_and_of_no_others(
    tokens: list[int], data: st.DataObject
) -> None:
    counts = sorted(data.draw(st.sets(st.integers(0, len(tokens)), max_size=5)))
    salt = request_salt(proof_key(SECRET, ("acme",)), "r1")
    for count, digest in zip(counts, prefix_digests(salt, tokens, counts), strict=True):
        raw = b"".join(token.to_bytes(4, "little") for token in tokens[:count])
        assert digest == hmac.digest(salt, raw, hashlib.sha256)


def test_salts_differ_by_secret_by_every_name_and_by_request() -> None:
    names = [("a",), ("b",), ("a", "b"), ("ab",), ("a", "b", "c"), ("a", "bc"), ("b", "a")]
    keys = {proof_key(SECRET, each) for each in names} | {proof_key(b"t" * 32, ("a",))}
    assert len(keys) == len(names) + 1
    key = proof_key(SECRET, ("a",))
    salts = {request_salt(key, name) for name in ("r1", "r2", "")}
    assert len(salts) == 3
    assert len({commitment(salt) for salt in salts}) == 3


def test_a_mark_tells_namespaces_apart_under_one_key_and_links_nobody_elses() -> None:
    ours, theirs = proof_key(SECRET, ("a",)), proof_key(SECRET, ("b",))
    one, other = NamespaceId(b"1" * 32), NamespaceId(b"2" * 32)
    assert namespace_mark(ours, one) == namespace_mark(ours, one)
    assert len({namespace_mark(k, n) for k in (ours, theirs) for n in (one, other)}) == 4


def test_a_number_that_is_no_token_id_is_refused() -> None:
    for token in (-1, 2**32):
        with pytest.raises(OverflowError):
            prefix_digests(b"s", [token], [1])
