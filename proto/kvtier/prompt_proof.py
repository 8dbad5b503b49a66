"""What a usage event says of a prompt's tokens without telling them: digests that only who has the
tokens and the request's salt can make.

    key     = HMAC-SHA-256(secret, "kvtier-receipt-key 1" || names, each with its length)
    salt    = HMAC-SHA-256(key, "request" || request id)
    digest  = HMAC-SHA-256(salt, first n token ids as little-endian uint32)

The names are those of who asked: organisation, project, user. The secret is the workers' own, the
same that salts block hashes; the salt is told to whoever asked, and to nobody else. A digest
commits to every token before it. `commitment` proves a salt without telling it; `namespace_mark` is
equal for equal namespaces under one key, and says nothing else of them.

Invariant: byte for byte the same on every machine, for ever; pinned by `tests/golden/receipts`. Any
change is a new `PROOF_SCHEME`. Pure functions, any thread.
"""

import hashlib
import hmac
from array import array
from collections.abc import Sequence

from kvtier.keys import NamespaceId, little_endian

__all__ = [
    "COMMITMENT_BYTES",
    "DIGEST_BYTES",
    "MARK_BYTES",
    "PROOF_SCHEME",
    "SALT_BYTES",
    "commitment",
    "namespace_mark",
    "prefix_digests",
    "proof_key",
    "request_salt",
]

PROOF_SCHEME = 1
"""Frozen: stored in every event that has a proof."""

SALT_BYTES = 32
DIGEST_BYTES = 32
COMMITMENT_BYTES = 16
MARK_BYTES = 16


def proof_key(secret: bytes, names: Sequence[str]) -> bytes:
    """Of requests that `names` ask for, 32 bytes; never leaves the worker."""
    encoded = b"".join(len(n.encode()).to_bytes(4, "little") + n.encode() for n in names)
    return hmac.digest(secret, b"kvtier-receipt-key 1" + encoded, "sha256")


def request_salt(key: bytes, request_id: str) -> bytes:
    """Opens one request's digests, 32 bytes."""
    return hmac.digest(key, b"request" + request_id.encode(), "sha256")


def commitment(salt: bytes) -> bytes:
    """Which salt it is, 16 bytes."""
    return hashlib.sha256(b"kvtier-receipt-salt 1" + salt).digest()[:COMMITMENT_BYTES]


def namespace_mark(key: bytes, namespace_id: NamespaceId) -> bytes:
    """Equal for requests of the same names that the same weights and layout served, 16 bytes."""
    return hmac.digest(key, b"namespace" + namespace_id, "sha256")[:MARK_BYTES]


def prefix_digests(salt: bytes, token_ids: Sequence[int], counts: Sequence[int]) -> list[bytes]:
    """Digests of the first `counts[i]` tokens, ascending counts of at most `len(token_ids)`.

    Raises OverflowError for an id that is not in [0, 2**32).
    """
    raw = memoryview(little_endian(array("I", token_ids)))
    running = hmac.new(salt, digestmod="sha256")
    digests, at = [], 0
    for count in counts:
        running.update(raw[4 * at : 4 * count])
        at = count
        digests.append(running.copy().digest())
    return digests
