"""What the worker puts into an event so that a prompt's classes can be proven."""

import logging
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from journal.format import LINE_BYTES_MAX, End
from kvtier.blocks import Tier
from kvtier.keys import NamespaceId
from kvtier.prompt_proof import commitment, prefix_digests
from worker.prompt_proof import DIGESTS_MAX, RUNS_MAX, ProofTerms, prove
from worker.requests import LEASES_MAX, SourceRun
from worker.usage_event import ChargedTokens, PromptProof
from worker.usage_journal_format import USAGE_FORMAT

BLOCK = 4
TERMS = ProofTerms.of(b"s" * 32, ("acme", "search"), "r1", NamespaceId(bytes(32)), BLOCK)
SOURCES = (None, *Tier)

Runs = list[SourceRun]


def tokens_of(runs: Runs, tail: int = 0) -> ChargedTokens:
    """`tail` tokens are missing from the last block, which was computed then."""
    hits: dict[Tier, int] = {}
    miss = -tail
    for run in runs:
        if run.tier is None:
            miss += run.block_count * BLOCK
        else:
            hits[run.tier] = hits.get(run.tier, 0) + run.block_count * BLOCK
    return ChargedTokens(hits, miss, 7)


def proven(runs: Runs, tail: int = 0, digests_max: int = 0) -> tuple[PromptProof, list[int]]:
    tokens = tokens_of(runs, tail)
    prompt = list(range(100, 100 + tokens.prompt_tokens))
    made = prove(replace(TERMS, digests_max=digests_max), runs, prompt, tokens)
    assert made is not None
    return made, prompt


def test_each_run_has_the_digest_of_all_tokens_up_to_its_end() -> None:
    runs = [SourceRun(Tier.GPU, 2), SourceRun(Tier.SSD, 1), SourceRun(None, 2)]
    made, prompt = proven(runs, tail=3)
    assert [run.blocks for run in made.runs] == [{Tier.GPU: 2}, {Tier.SSD: 1}, {None: 2}]
    assert [run.digest for run in made.runs] == prefix_digests(TERMS.salt, prompt, [8, 12, 17])
    assert (made.scheme, made.block_tokens, made.digests) == (1, BLOCK, b"")
    assert made.commitment == commitment(TERMS.salt)


def test_a_prompt_that_was_not_reached_whole_is_proven_as_far_as_it_was() -> None:
    runs = [SourceRun(Tier.HOST, 1), SourceRun(None, 1)]
    prompt = list(range(100))
    made = prove(TERMS, runs, prompt, tokens_of(runs))
    assert made is not None
    assert [run.digest for run in made.runs] == prefix_digests(TERMS.salt, prompt, [4, 8])


def test_what_charges_nothing_proves_nothing() -> None:
    assert prove(TERMS, [SourceRun(None, 2)], range(8), ChargedTokens()) is None


@pytest.mark.parametrize(
    "tokens",
    [ChargedTokens({Tier.GPU: 8}, 0), ChargedTokens({Tier.HOST: 4}, 4), ChargedTokens({}, 9)],
)
def test_blocks_that_are_not_the_tokens_are_left_out_and_said(
    tokens: ChargedTokens, caplog: pytest.LogCaptureFixture
) -> None:
    runs = [SourceRun(Tier.GPU, 1), SourceRun(None, 1)]
    with caplog.at_level(logging.ERROR):
        assert prove(TERMS, runs, range(9), tokens) is None
    assert "not its tokens" in caplog.text


@given(
    st.lists(st.tuples(st.sampled_from(SOURCES), st.integers(1, 9)), min_size=1, max_size=400),
    st.integers(0, DIGESTS_MAX),
)
def test_proofs_add_up_and_stay_small(pairs: list[Any], digests_max: int) -> None:
    runs = [SourceRun(tier, count) for tier, count in pairs]
    made, prompt = proven(runs, digests_max=digests_max)
    blocks: dict[Any, int] = {}
    for run in made.runs:
        for place, count in run.blocks.items():
            blocks[place] = blocks.get(place, 0) + count
    assert len(made.runs) <= RUNS_MAX
    assert {place: count * BLOCK for place, count in blocks.items() if place is not None} == (
        tokens_of(runs).hit_tokens_by_tier
    )
    assert made.runs[-1].digest == prefix_digests(TERMS.salt, prompt, [len(prompt)])[0]
    count = sum(blocks.values())
    if digests_max:
        assert len(made.digests) // 32 == count // made.digest_blocks <= digests_max
        ends = [made.digest_blocks * BLOCK * n for n in range(1, count // made.digest_blocks + 1)]
        assert made.digests == b"".join(prefix_digests(TERMS.salt, prompt, ends))
    else:
        assert (made.digest_blocks, made.digests) == (0, b"")


def test_the_largest_proof_fits_a_line_of_the_journal_and_comes_back(make_event: Any) -> None:
    # Runs change place with every block, and each of them is put together of several.
    runs = [SourceRun(SOURCES[n % 5], 1_000) for n in range(RUNS_MAX * 5)]
    made, _ = proven(runs, digests_max=DIGESTS_MAX)
    assert len(made.digests) == 320_000 // made.digest_blocks * 32 > 32 * 700
    event = replace(make_event("r" * 200), proof=made, lease_ids=("l" * 32,) * LEASES_MAX)
    long = replace(
        event.request, client_request_id="\U0001f600" * 1024, session_id="\U0001f600" * 1024
    )
    line = USAGE_FORMAT.encode(2**62, End(replace(event, request=long)))
    assert len(line) < LINE_BYTES_MAX
    assert USAGE_FORMAT.decode(line.removesuffix(b"\n")) == (
        2**62,
        End(replace(event, request=long)),
    )
