"""Block hashes: the names by which both ends know a block of KV.

    root = SHA-256(namespace)
    h_0  = SHA-256(root    || token ids of block 0 as little-endian uint32)
    h_i  = SHA-256(h_{i-1} || token ids of block i as little-endian uint32)

A block hash names its block together with everything before it, so equal hash means reusable KV,
and the blocks form a tree by parent hash. Where a public prefix goes over into a private suffix,
the first private block mixes the narrower scope's salt in once, and every later block inherits it:

    h_i = SHA-256(h_{i-1} || salt || token ids of block i)

A block's bytes are bound to its name by their checksum: xxh3-64 seeded with 8 bytes of the hash.

Invariant: this chain is byte for byte the same on every machine, in every process, for ever. It is
pinned by `tests/golden/keys.json`; any change is a new `KEY_SCHEME_VERSION`. Pure functions, any
thread.

Why SHA-256 and not something faster or seeded: a collision would hand one tenant another tenant's
KV, and a random root would stop sharing between processes and restarts. vLLM moved the same way
(its pull requests 12621 and 15297).
"""

import hashlib
import hmac
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NewType

import xxhash

__all__ = [
    "DEFAULT_BLOCK_TOKENS",
    "HASH_BYTES",
    "KEY_SCHEME_VERSION",
    "PUBLIC_SALT",
    "BlockChain",
    "BlockHash",
    "MalformedHashesError",
    "Namespace",
    "NamespaceId",
    "ScopeSalt",
    "block_chain",
    "checksum_seed",
    "pack_hashes",
    "payload_checksum",
    "scope_salt",
    "unpack_hashes",
]

KEY_SCHEME_VERSION = 1
"""Frozen: goes over the wire and, within the namespace, into every stored record."""

HASH_BYTES = 32
DEFAULT_BLOCK_TOKENS = 64
"""DeepSeek's storage unit."""

TOKEN_ID_MAX = 2**32 - 1

Buffer = bytes | bytearray | memoryview

BlockHash = NewType("BlockHash", bytes)
NamespaceId = NewType("NamespaceId", bytes)
ScopeSalt = NewType("ScopeSalt", bytes)

PUBLIC_SALT = ScopeSalt(b"")
"""The salt of the public scope: none."""


class MalformedHashesError(ValueError):
    """Packed hashes whose length is not a multiple of `HASH_BYTES`."""


@dataclass(frozen=True, slots=True)
class Namespace:
    """Everything besides tokens and scope that makes two blocks of KV differ.

    The values are text; the caller spells them so that equal text means interchangeable KV.
    """

    weights: str
    """Digest of the checkpoint's own files, never its name."""
    layout: str
    """Heads, dimensions and order of every layer's KV inside a block."""
    dtype: str
    block_tokens: int
    rope: str
    """Every setting that moves positions into keys."""
    engine: str
    """Which engine and layout version wrote the bytes."""
    adapter: str = ""
    epoch: int = 0
    """Bumped by an operator on a hot weight swap."""

    def encode(self) -> bytes:
        """Canonical bytes: each field as length-prefixed UTF-8, in this order. Frozen."""
        fields = (
            f"kvtier-keys-{KEY_SCHEME_VERSION}",
            self.weights,
            self.adapter,
            self.dtype,
            self.rope,
            self.layout,
            str(self.block_tokens),
            self.engine,
            str(self.epoch),
        )
        parts = []
        for text in fields:
            raw = text.encode()
            parts.append(len(raw).to_bytes(4, "little"))
            parts.append(raw)
        return b"".join(parts)

    @property
    def id(self) -> NamespaceId:
        """SHA-256 of the canonical bytes: the namespace without any scope, 32 bytes."""
        return NamespaceId(hashlib.sha256(self.encode()).digest())

    def root(self, salt: ScopeSalt) -> bytes:
        """The parent of every first block of this namespace in the scope of `salt`, 32 bytes."""
        return hashlib.sha256(self.encode() + len(salt).to_bytes(4, "little") + salt).digest()


def scope_salt(secret: bytes, *path: str) -> ScopeSalt:
    """Salt of the scope `path` (organisation, project, user ...), derived with a server's secret.

    The client never supplies it. Raises ValueError for an empty path or a secret under 32 bytes.
    """
    if len(secret) < 32:
        raise ValueError("the scope secret must have at least 32 bytes")
    if not path or not all(path):
        raise ValueError("a private scope needs a path of non-empty names")
    encoded = b"".join(len(p.encode()).to_bytes(4, "little") + p.encode() for p in path)
    return ScopeSalt(hmac.digest(secret, b"kvtier-scope" + encoded, "sha256"))


@dataclass(slots=True)
class BlockChain:
    """The growing chain of one request's full blocks. Owned by one thread.

    `public_blocks` leading blocks are in the public scope; all later ones in the scope of `salt`.
    Invariant: `hashes[i]` names tokens `[0, (i + 1) * block_tokens)`.
    """

    namespace: Namespace
    salt: ScopeSalt
    public_blocks: int = 0
    hashes: list[BlockHash] = field(default_factory=list)
    _tail: "array[int]" = field(default_factory=lambda: array("I"))

    def extend(self, token_ids: Sequence[int]) -> list[BlockHash]:
        """Appends tokens (ids in `[0, 2**32)`) and returns the hashes of blocks they completed."""
        self._tail.extend(token_ids)
        size = self.namespace.block_tokens
        first = len(self.hashes)
        full = len(self._tail) // size * size
        for start in range(0, full, size):
            self._append(self._tail[start : start + size])
        del self._tail[:full]
        return self.hashes[first:]

    def _append(self, block: "array[int]") -> None:
        index = len(self.hashes)
        if index > 0:
            parent: bytes = self.hashes[-1]
        elif self.public_blocks > 0:
            parent = self.namespace.root(PUBLIC_SALT)
        else:
            parent = self.namespace.root(self.salt)
        mixed = self.salt if 0 < index == self.public_blocks else b""
        self.hashes.append(
            BlockHash(hashlib.sha256(parent + mixed + _little_endian(block)).digest())
        )


def block_chain(
    namespace: Namespace, salt: ScopeSalt, token_ids: Sequence[int], public_blocks: int = 0
) -> list[BlockHash]:
    """Hashes of all full blocks of `token_ids`, first to last."""
    return BlockChain(namespace, salt, public_blocks).extend(token_ids)


def checksum_seed(block_hash: bytes) -> int:
    """The seed of a block's checksum: the first 8 bytes of its hash, little-endian.

    It binds the bytes to the name: a block that is handed out under another one's hash, with its
    own right checksum, does not match.
    """
    return int.from_bytes(block_hash[:8], "little")


def payload_checksum(block_hash: bytes, payload: Buffer) -> int:
    """xxh3-64 of a block's payload, seeded with its name; what travels with it everywhere."""
    return xxhash.xxh3_64_intdigest(payload, checksum_seed(block_hash))


def pack_hashes(hashes: Sequence[BlockHash]) -> bytes:
    """The wire form of a chain: 32 bytes a block."""
    return b"".join(hashes)


def unpack_hashes(packed: bytes) -> list[BlockHash]:
    """Inverse of `pack_hashes`. Raises MalformedHashesError."""
    if len(packed) % HASH_BYTES:
        raise MalformedHashesError(
            f"{len(packed)} bytes are not a whole number of {HASH_BYTES}-byte block hashes"
        )
    return list(_split(packed))


def _split(packed: bytes) -> Iterator[BlockHash]:
    for start in range(0, len(packed), HASH_BYTES):
        yield BlockHash(packed[start : start + HASH_BYTES])


def _little_endian(block: "array[int]") -> bytes:
    if block.itemsize != 4:
        return b"".join(token.to_bytes(4, "little") for token in block)
    if _BIG_ENDIAN:
        block = array("I", block)
        block.byteswap()
    return block.tobytes()


_BIG_ENDIAN = array("I", [1]).tobytes()[0] == 0
