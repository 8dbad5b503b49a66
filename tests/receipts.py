"""Receipts for tests: events that prove their prompts, receipts of a till, and where each part of a
receipt lies in its file."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from billing.prompt_proof import PLACES, PromptProof, ProvenRun
from billing.receipt import file_bytes, signed_bytes
from billing.receipt_issue import brought_up, draft_of, receipt_of
from billing.usage import UsageEvent
from kvtier.keys import NamespaceId
from kvtier.prompt_proof import (
    commitment,
    namespace_mark,
    prefix_digests,
    proof_key,
    request_salt,
)

SECRET = bytes(range(32))
NAMESPACE = NamespaceId(b"n" * 32)
BLOCK = 64

Runs = Sequence[tuple[str, int]]
"""(place, blocks)."""


def salt_of(event: UsageEvent) -> bytes:
    names = (event.tenant_id, event.project_id or "", event.user_id or "")
    return request_salt(proof_key(SECRET, [n for n in names if n]), event.request_id)


def proven(
    event: UsageEvent, runs: Runs, tail: int = 0, every: int = 0
) -> tuple[UsageEvent, list[int]]:
    """`event` with the counts and the proof of these runs, and its prompt; `tail` tokens are
    missing from the last block. `every`: a digest after so many blocks."""
    total = sum(count for _, count in runs) * BLOCK - tail
    counts = dict.fromkeys(PLACES, 0)
    for place, count in runs:
        counts[place] += count * BLOCK
    counts["computed"] -= tail
    hit = total - counts["computed"]
    tokens = replace(
        event.tokens,
        prompt=total,
        hit=hit,
        hit_gpu=counts["gpu"],
        hit_host=counts["host"],
        hit_ssd=counts["ssd"],
        hit_shared=counts["shared"],
        miss=counts["computed"],
    )
    prompt = [(7 * n) % 50_000 for n in range(total)]
    salt = salt_of(event)
    ends, at = [], 0
    for _, count in runs:
        at += count
        ends.append(min(at * BLOCK, total))
    blocks = [min(n * BLOCK, total) for n in range(every, at + 1, every)] if every else []
    proof = PromptProof(
        block_tokens=BLOCK,
        commitment=commitment(salt),
        namespace_mark=namespace_mark(proof_key(SECRET, [event.tenant_id]), NAMESPACE),
        runs=tuple(
            ProvenRun(((place, count),), digest)
            for (place, count), digest in zip(runs, prefix_digests(salt, prompt, ends), strict=True)
        ),
        digest_blocks=every,
        digests=b"".join(prefix_digests(salt, prompt, blocks)),
    )
    return replace(event, tokens=tokens, proof=proof), prompt


def receipt_file(till: Any, name: str, opening: bytes = b"") -> bytes:
    """As billing issues it, and as `kvtier receipt get` writes it with `opening`."""
    draft = till.store.read(lambda connection: draft_of(connection, name, "", ""))
    made: dict[str, Any] = {}

    def message(connection: Any, keys: Any, now_ns: int) -> bytes:
        made.update(receipt_of(brought_up(connection, draft), keys, now_ns))
        return signed_bytes(made)

    return file_bytes(made, till.ledger.sign(message).result(30), opening)


def parts_at(raw: bytes) -> list[str]:
    """Of each byte of a receipt's file, the path of the value it belongs to, or whose key it is."""
    paths = [""] * len(raw)
    for path, start, end in _spans(json.loads(raw), "", 0):
        paths[start:end] = [path] * (end - start)
    return paths


def _spans(value: Any, path: str, at: int) -> Iterator[tuple[str, int, int]]:
    """Outer spans before the inner ones."""
    yield path, at, at + len(_text(value))
    if isinstance(value, dict):
        at += 1
        for key in sorted(value):
            name = f"{path}.{key}" if path else key
            yield name, at, at + len(_text(key)) + 1
            at += len(_text(key)) + 1
            yield from _spans(value[key], name, at)
            at += len(_text(value[key])) + 1
    elif isinstance(value, list):
        at += 1
        for index, each in enumerate(value):
            yield from _spans(each, f"{path}[{index}]", at)
            at += len(_text(each)) + 1


def _text(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=True)
