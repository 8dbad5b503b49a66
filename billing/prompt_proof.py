"""A prompt's proof in an event: where its blocks came from, and digests of its tokens.

    {"block_tokens":64,"commitment":"..","digest_blocks":1,"digests":"..","namespace_mark":"..",
     "runs":[{"digest":"..","gpu":12,"host":3},{"computed":2,"digest":".."}],"scheme":1}  (one line)

A place without blocks has no key; `digest_blocks` and `digests` are there together or not at all.
Invariant: equal proofs give equal text for ever. Frozen: it is hashed with its event. What digests
are of is `kvtier.prompt_proof`'s. Frozen data and pure functions, any thread.
"""

import base64
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from billing.frozen import frozen_dataclass
from kvtier.prompt_proof import COMMITMENT_BYTES, DIGEST_BYTES, MARK_BYTES, PROOF_SCHEME

__all__ = [
    "COMPUTED",
    "PLACES",
    "PromptProof",
    "ProvenRun",
    "malformed",
    "proof_of_data",
    "proof_text",
]

COMPUTED = "computed"
PLACES = (COMPUTED, "gpu", "host", "shared", "ssd")
"""Where a block can have come from. Frozen."""

RUNS_MAX = 64
DIGESTS_MAX = 768
BLOCK_TOKENS_MAX = 4096
BLOCKS_MAX = 2**31 - 1


class ProvenRun(NamedTuple):
    """Blocks, one after the other."""

    blocks: tuple[tuple[str, int], ...]
    """(place, how many), in the order of PLACES, none of 0."""
    digest: bytes
    """Of all of the prompt's tokens up to the run's end."""

    @property
    def block_count(self) -> int:
        return sum(count for _, count in self.blocks)


@frozen_dataclass(frozen=True, slots=True)
class PromptProof:
    """As the worker sent it; `malformed` says whether it can be one."""

    block_tokens: int
    commitment: bytes
    """To the salt of the digests."""
    namespace_mark: bytes
    runs: tuple[ProvenRun, ...]
    digest_blocks: int = 0
    """`digests` has one after so many blocks each; 0: it has none."""
    digests: bytes = b""
    """Packed."""

    @property
    def block_count(self) -> int:
        return sum(self.blocks_by_place().values())

    def blocks_by_place(self) -> dict[str, int]:
        """Of each of PLACES."""
        found = dict.fromkeys(PLACES, 0)
        for run in self.runs:
            for place, count in run.blocks:
                found[place] += count
        return found

    def digest_ends(self, prompt_tokens: int) -> list[tuple[int, bytes]]:
        """(tokens, digest of so many) of all digests, ascending."""
        found, end = [], 0
        for run in self.runs:
            end += run.block_count
            found.append((min(end * self.block_tokens, prompt_tokens), run.digest))
        for number in range(len(self.digests) // DIGEST_BYTES):
            tokens = min((number + 1) * self.digest_blocks * self.block_tokens, prompt_tokens)
            start = number * DIGEST_BYTES
            found.append((tokens, self.digests[start : start + DIGEST_BYTES]))
        return sorted(found)


def malformed(proof: PromptProof) -> bool:
    """Whether no worker makes such a proof, whatever the event says."""
    sizes = (len(proof.commitment), len(proof.namespace_mark))
    count = 0
    for run in proof.runs:
        if len(run.digest) != DIGEST_BYTES or not run.blocks:
            return True
        for _, blocks in run.blocks:
            if not 1 <= blocks <= BLOCKS_MAX:
                return True
            count += blocks
    digests = count // proof.digest_blocks if proof.digest_blocks > 0 else 0
    return (
        sizes != (COMMITMENT_BYTES, MARK_BYTES)
        or not 1 <= proof.block_tokens <= BLOCK_TOKENS_MAX
        or not 1 <= len(proof.runs) <= RUNS_MAX
        or proof.digest_blocks < 0
        or digests > DIGESTS_MAX
        or len(proof.digests) != digests * DIGEST_BYTES
    )


def proof_text(proof: PromptProof) -> str:
    """Canonical text: one line of ASCII JSON."""
    # Spelled out, as the event's: it is made for every event.
    packed = ""
    if proof.digest_blocks or proof.digests:
        said = base64.b64encode(proof.digests).decode()
        packed = f'"digest_blocks":{proof.digest_blocks},"digests":"{said}",'
    return (
        f'{{"block_tokens":{proof.block_tokens},"commitment":"{proof.commitment.hex()}",{packed}'
        f'"namespace_mark":"{proof.namespace_mark.hex()}"'
        f',"runs":[{",".join(map(_run_text, proof.runs))}],"scheme":{PROOF_SCHEME}}}'
    )


def _run_text(run: ProvenRun) -> str:
    # Keys in alphabetical order: of the places, only `computed` is before the digest.
    if len(run.blocks) == 1:
        ((place, count),) = run.blocks
        if place == COMPUTED:
            return f'{{"computed":{count},"digest":"{run.digest.hex()}"}}'
        return f'{{"digest":"{run.digest.hex()}","{place}":{count}}}'
    parts = [f'"{place}":{count}' for place, count in run.blocks]
    computed = bool(run.blocks) and run.blocks[0][0] == COMPUTED
    parts.insert(int(computed), f'"digest":"{run.digest.hex()}"')
    return "{" + ",".join(parts) + "}"


def proof_of_data(data: Mapping[str, Any]) -> PromptProof:
    """Of parsed canonical text; what is not its inverse is for the caller to find out.

    Raises KeyError, TypeError, ValueError.
    """
    if data["scheme"] != PROOF_SCHEME:
        raise ValueError(f"a prompt's proof of scheme {json.dumps(data['scheme'])}")
    return PromptProof(
        block_tokens=data["block_tokens"],
        commitment=bytes.fromhex(data["commitment"]),
        namespace_mark=bytes.fromhex(data["namespace_mark"]),
        runs=tuple(
            ProvenRun(
                tuple((place, run[place]) for place in PLACES if place in run),
                bytes.fromhex(run["digest"]),
            )
            for run in data["runs"]
        ),
        digest_blocks=data.get("digest_blocks", 0),
        digests=base64.b64decode(data.get("digests", ""), validate=True),
    )
