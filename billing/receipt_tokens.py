"""A prompt's digests against the tokens of whoever sent it: do they hold, and from where on not.

Pure, any thread; a long prompt takes milliseconds.
"""

from collections.abc import Sequence

from billing.prompt_proof import PromptProof
from billing.usage import EndReason, UsageEvent
from kvtier.prompt_proof import commitment, prefix_digests

__all__ = ["opening_problem", "token_problem"]

TOKEN_ID_MAX = 2**32 - 1

_SERVED = (EndReason.STOP, EndReason.LENGTH)
"""Ends that charge the whole prompt."""


def opening_problem(proof: PromptProof | None, opening: bytes) -> str:
    """What is wrong with it; empty when nothing is."""
    if proof is None:
        return "the event proves nothing that it could open"
    if commitment(opening) != proof.commitment:
        return "it is not that of this receipt: it was changed, or the workers have another secret"
    return ""


def token_problem(
    event: UsageEvent, opening: bytes, token_ids: Sequence[int]
) -> tuple[str, str] | None:
    """Where they are not the prompt's, and what is wrong; None: they are."""
    proof = event.proof
    if proof is None:
        return "event.proof", "the event has none, so tokens cannot be checked"
    if not opening:
        return (
            "opening",
            "the receipt is sealed: get it again with its opening (kvtier receipt get)",
        )
    if problem := opening_problem(proof, opening):
        return "opening", problem
    strange = next((i for i, t in enumerate(token_ids) if not 0 <= t <= TOKEN_ID_MAX), None)
    if strange is not None:
        return f"token {strange + 1:,}", f"{token_ids[strange]} is no token id"
    return _difference(event, proof, opening, token_ids)


def _difference(
    event: UsageEvent, proof: PromptProof, opening: bytes, token_ids: Sequence[int]
) -> tuple[str, str] | None:
    prompt, given = event.tokens.prompt, len(token_ids)
    ends = [(count, digest) for count, digest in proof.digest_ends(prompt) if count <= given]
    counts = [count for count, _ in ends]
    same = 0
    for (count, digest), made in zip(ends, prefix_digests(opening, token_ids, counts), strict=True):
        if digest != made:
            return _blocks(same, count, proof.block_tokens), (
                f"the first {same:,} tokens are those of the receipt; of tokens {same + 1:,} to"
                f" {count:,} at least one is another"
            )
        same = count
    if given < prompt:
        return f"token {given + 1:,}", (
            f"{given:,} tokens were given, and the receipt counts {prompt:,}; the first {same:,}"
            " are those of the receipt"
        )
    if given > prompt and event.end_reason in _SERVED:
        return f"token {prompt + 1:,}", (
            f"{given:,} tokens were given, and the receipt counts {prompt:,}, which are the first"
            " of them"
        )
    return None


def _blocks(start: int, end: int, block_tokens: int) -> str:
    """Names of the blocks, from 0, that tokens [start, end) are in."""
    first, last = start // block_tokens, (end - 1) // block_tokens
    return f"block {first:,}" if first == last else f"blocks {first:,} to {last:,}"
