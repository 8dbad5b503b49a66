"""Block hashes: the names by which both ends know a block of KV.

    root = SHA-256(namespace)
    h_0  = SHA-256(root    || token ids of block 0 as little-endian uint32)
    h_i  = SHA-256(h_{i-1} || token ids of block i as little-endian uint32)

A block hash names its block together with everything before it, so equal hash means reusable KV,
and the blocks form a tree by parent hash. A chain may begin in a wide scope and narrow on its way
(`ChainScope`): the first block of each narrower scope mixes that scope's salt in once, and every
later block inherits it:

    h_i = SHA-256(h_{i-1} || salt || token ids of block i)

The root mixes in the salt of the first block's scope. So equal hash also means: the same scope for
this block and for each one before it.

A block's bytes are bound to its name by their checksum: xxh3-64 seeded with 8 bytes of the hash.

Invariant: this chain is byte for byte the same on every machine, in every process, for ever. It is
pinned by `tests/golden/keys.json`; any change is a new `KEY_SCHEME_VERSION`. Pure functions, any
thread.

Why SHA-256 and not something faster or seeded: a collision would hand one tenant another tenant's
KV, and a random root would stop sharing between processes and restarts. vLLM moved the same way
(its pull requests 12621 and 15297).
"""

import hashlib
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NewType

import xxhash

__all__ = [
    "DEFAULT_BLOCK_TOKENS",
    "HASH_BYTES",
    "KEY_SCHEME_VERSION",
    "PUBLIC_SALT",
    "PUBLIC_SCOPE",
    "BlockChain",
    "BlockHash",
    "ChainScope",
    "MalformedHashesError",
    "Namespace",
    "NamespaceId",
    "ScopeSalt",
    "block_chain",
    "checksum_seed",
    "little_endian",
    "pack_hashes",
    "payload_checksum",
    "payload_checksums",
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


@dataclass(frozen=True, slots=True)
class ChainScope:
    """Which blocks of a chain are in which scope; only ever narrowing.

    `salts` are the scopes' salts, widest first; `ends[r]` is the block at which scope `r` has
    ended, and the last scope has no end. A scope that ends where it begins has no block.
    """

    salts: tuple[ScopeSalt, ...]
    ends: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.ends) != len(self.salts) - 1:
            raise ValueError("every scope of a chain but the last has an end")
        if any(end < start for start, end in pairwise((0, *self.ends))):
            raise ValueError("the scopes of a chain follow each other")
        if PUBLIC_SALT in self.salts[1:] or len(set(self.salts)) != len(self.salts):
            raise ValueError("a chain does not come back to a wider scope")

    def salt_of(self, index: int) -> ScopeSalt:
        """Salt of the scope that block `index` is in."""
        return self.salts[bisect_right(self.ends, index)]


PUBLIC_SCOPE = ChainScope((PUBLIC_SALT,))
"""Of a chain that everybody may reuse."""


@dataclass(slots=True)
class BlockChain:
    """The growing chain of one request's full blocks. Owned by one thread.

    Invariant: `hashes[i]` names tokens `[0, (i + 1) * block_tokens)` and the scopes of blocks
    `[0, i]`.
    """

    namespace: Namespace
    scope: ChainScope
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

    def branch(self, count: int) -> "BlockChain":
        """A chain of its own that begins with this one's first `count` blocks."""
        return BlockChain(self.namespace, self.scope, self.hashes[:count])

    def _append(self, block: "array[int]") -> None:
        index = len(self.hashes)
        salt = self.scope.salt_of(index)
        mixed = PUBLIC_SALT
        if index == 0:
            parent = self.namespace.root(salt)
        else:
            parent = self.hashes[-1]
            if salt != self.scope.salt_of(index - 1):
                mixed = salt
        self.hashes.append(
            BlockHash(hashlib.sha256(parent + mixed + little_endian(block)).digest())
        )


def block_chain(
    namespace: Namespace, scope: ChainScope, token_ids: Sequence[int]
) -> list[BlockHash]:
    """Hashes of all full blocks of `token_ids`, first to last."""
    return BlockChain(namespace, scope).extend(token_ids)


def checksum_seed(block_hash: bytes) -> int:
    """The seed of a block's checksum: the first 8 bytes of its hash, little-endian.

    It binds the bytes to the name: a block that is handed out under another one's hash, with its
    own right checksum, does not match.
    """
    return int.from_bytes(block_hash[:8], "little")


def payload_checksum(block_hash: bytes, payload: Buffer) -> int:
    """xxh3-64 of a block's payload, seeded with its name; what travels with it everywhere."""
    return xxhash.xxh3_64_intdigest(payload, checksum_seed(block_hash))


def payload_checksums(hashes: Sequence[bytes], payloads: Sequence[Buffer]) -> list[int]:
    """`payload_checksum` of each. A payload drives the interpreter out of the processor's caches,
    so nothing of it runs between two of them."""
    seeds = [checksum_seed(block_hash) for block_hash in hashes]
    return list(map(xxhash.xxh3_64_intdigest, payloads, seeds))


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


def little_endian(block: "array[int]") -> bytes:
    """Token ids as uint32, of an `array("I")`."""
    if block.itemsize != 4:
        return b"".join(token.to_bytes(4, "little") for token in block)
    if _BIG_ENDIAN:
        block = array("I", block)
        block.byteswap()
    return block.tobytes()


_BIG_ENDIAN = array("I", [1]).tobytes()[0] == 0
