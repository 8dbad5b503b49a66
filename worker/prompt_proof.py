"""Proves where a prompt's tokens came from: runs of blocks, each with a digest of all tokens up to
its end, for the usage event and so for the receipt.

Invariant: a proof says what the event's token classes say, block for block, or there is none. Runs
are at most RUNS_MAX; more are put together, and then a run has blocks of several places. Pure, any
thread; a long prompt takes milliseconds.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from kvtier.blocks import Tier
from kvtier.keys import NamespaceId
from kvtier.prompt_proof import (
    PROOF_SCHEME,
    commitment,
    namespace_mark,
    prefix_digests,
    proof_key,
    request_salt,
)
from worker.requests import SourceRun
from worker.usage_event import ChargedTokens, PromptProof, ProvenRun

__all__ = ["DIGESTS_MAX", "RUNS_MAX", "ProofTerms", "prove"]

log = logging.getLogger(__name__)

RUNS_MAX = 64
"""Of one event: about 100 bytes each."""

DIGESTS_MAX = 768
"""Of one event, beside those of its runs: 44 bytes each, in a line of the journal."""


@dataclass(frozen=True, slots=True)
class ProofTerms:
    """What makes one request's digests."""

    salt: bytes
    mark: bytes
    """Of the namespace."""
    block_tokens: int
    digests_max: int = 0
    """Beside those of runs, as evenly as blocks allow; 0: none."""

    @classmethod
    def of(
        cls,
        secret: bytes,
        names: Sequence[str],
        request_id: str,
        namespace_id: NamespaceId,
        block_tokens: int,
        digests_max: int = 0,
    ) -> "ProofTerms":
        """`names`: who asks, organisation first."""
        key = proof_key(secret, names)
        salt, mark = request_salt(key, request_id), namespace_mark(key, namespace_id)
        return cls(salt, mark, block_tokens, digests_max)


def prove(
    terms: ProofTerms, runs: Sequence[SourceRun], token_ids: Sequence[int], tokens: ChargedTokens
) -> PromptProof | None:
    """The proof of `tokens`, of a prompt of `token_ids`; None where no token of it is charged."""
    if not tokens.prompt_tokens:
        return None
    if not _adds_up(runs, tokens, terms.block_tokens):
        # Our own bug; the event is right without it, and must not be lost for it.
        log.error("a prompt's blocks are not its tokens: the event has no proof of them")
        return None
    folded = _folded(runs)
    every = _every(sum(run.block_count for run in runs), terms.digests_max)
    run_ends, block_ends = _ends(folded, every)
    size, prompt = terms.block_tokens, tokens.prompt_tokens
    counts = sorted({min(end * size, prompt) for end in (*run_ends, *block_ends)})
    made = dict(zip(counts, prefix_digests(terms.salt, token_ids, counts), strict=True))
    return PromptProof(
        scheme=PROOF_SCHEME,
        block_tokens=size,
        commitment=commitment(terms.salt),
        namespace_mark=terms.mark,
        runs=tuple(
            ProvenRun(blocks, made[min(end * size, prompt)])
            for blocks, end in zip(folded, run_ends, strict=True)
        ),
        digest_blocks=every,
        digests=b"".join(made[min(end * size, prompt)] for end in block_ends),
    )


def _adds_up(runs: Sequence[SourceRun], tokens: ChargedTokens, block_tokens: int) -> bool:
    blocks = Counter[Tier | None]()
    for run in runs:
        blocks[run.tier] += run.block_count
    hits = {tier: blocks[tier] * block_tokens for tier in Tier if blocks[tier]}
    said = {tier: count for tier, count in tokens.hit_tokens_by_tier.items() if count}
    return hits == said and blocks.total() == -(-tokens.prompt_tokens // block_tokens)


def _folded(runs: Sequence[SourceRun]) -> list[dict[Tier | None, int]]:
    """Blocks by place, of at most RUNS_MAX runs."""
    group = -(-len(runs) // RUNS_MAX)
    folded = []
    for start in range(0, len(runs), group):
        blocks = dict[Tier | None, int]()
        for run in runs[start : start + group]:
            blocks[run.tier] = blocks.get(run.tier, 0) + run.block_count
        folded.append(blocks)
    return folded


def _every(block_count: int, digests_max: int) -> int:
    """After so many blocks each there is a digest; 0: none."""
    return -(-block_count // digests_max) if digests_max else 0


def _ends(folded: Sequence[dict[Tier | None, int]], every: int) -> tuple[list[int], list[int]]:
    """Blocks at which runs end, and after which there is a digest."""
    run_ends, at = [], 0
    for blocks in folded:
        at += sum(blocks.values())
        run_ends.append(at)
    return run_ends, [*range(every, at + 1, every)] if every else []
