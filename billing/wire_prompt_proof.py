"""A prompt's proof as a message of `kvtier.v1`, and back. Pure functions, any thread.

Invariant: what comes in is taken as it is; whether it holds together is for `prompt_proof`.
"""

from billing.prompt_proof import PromptProof, ProvenRun
from kvtier.prompt_proof import PROOF_SCHEME
from kvtier.v1 import usage_pb2

__all__ = ["proof_message", "proof_of"]


def proof_of(message: usage_pb2.PromptProof) -> PromptProof | None:
    """None for a scheme of a newer worker: its event counts all the same, and proves nothing."""
    if message.scheme != PROOF_SCHEME:
        return None
    return PromptProof(
        block_tokens=message.block_tokens,
        commitment=message.commitment,
        namespace_mark=message.namespace_mark,
        runs=tuple([ProvenRun(_blocks(run), run.digest) for run in message.runs]),
        digest_blocks=message.digest_block_count,
        digests=message.digests,
    )


def proof_message(proof: PromptProof) -> usage_pb2.PromptProof:
    """Inverse of `proof_of`."""
    return usage_pb2.PromptProof(
        scheme=PROOF_SCHEME,
        block_tokens=proof.block_tokens,
        commitment=proof.commitment,
        namespace_mark=proof.namespace_mark,
        runs=map(_run_message, proof.runs),
        digest_block_count=proof.digest_blocks,
        digests=proof.digests,
    )


def _blocks(run: usage_pb2.BlockRun) -> tuple[tuple[str, int], ...]:
    # Spelled out, in the order of PLACES: it is asked for each run of every event.
    found: tuple[tuple[str, int], ...] = ()
    if count := run.computed_block_count:
        found = (("computed", count),)
    if count := run.gpu_block_count:
        found += (("gpu", count),)
    if count := run.host_block_count:
        found += (("host", count),)
    if count := run.shared_block_count:
        found += (("shared", count),)
    if count := run.ssd_block_count:
        found += (("ssd", count),)
    return found


def _run_message(run: ProvenRun) -> usage_pb2.BlockRun:
    message = usage_pb2.BlockRun(digest=run.digest)
    for place, count in run.blocks:
        setattr(message, f"{place}_block_count", count)
    return message
