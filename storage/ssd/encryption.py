"""AES-256-GCM over a record's stored bytes, and the mask over its checksum.

    payload -> codec -> stored bytes -> encrypted under the data key of the block's organisation

A tag binds the bytes to what the block is: its names, owner, codec, sizes, checksum and key. Not to
its place, so that a record is written again as it is. The checksum of a payload that somebody
guessed would show that the guess is right; so it lies under a mask that only the key makes.

Invariant: `decrypt` returns only if the tag is right; what its memory holds otherwise is not to be
used. A nonce is random and never given twice by its caller. Frozen: it is on disk
(docs/formats/segment.md). Pure, any thread; the interpreter lock is free over the bytes.
"""

import hmac
import struct
from typing import NamedTuple

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from storage.codec import Codec
from storage.tier import BlockRecord

__all__ = [
    "KEY_BYTES",
    "KEY_ID_BYTES",
    "NONCE_BYTES",
    "TAG_BYTES",
    "DataKey",
    "Encrypted",
    "WrongTagError",
    "bound_bytes",
    "organisation_of",
]

KEY_BYTES = 32
KEY_ID_BYTES = 16
NONCE_BYTES = 12
TAG_BYTES = 16

_AES_BLOCK_BYTES = 16
_MASK_LABEL = b"kvtier ssd checksum mask 1"
_BOUND_LABEL = b"kvtier ssd record 1\0"
_BOUND = struct.Struct("<IQQQ32s32s32s16sI")


class WrongTagError(Exception):
    """The bytes are not what was encrypted. Stays inside the SSD room."""


class Encrypted(NamedTuple):
    """What a record's header says of its encryption."""

    key_id: bytes
    nonce: bytes
    tag: bytes
    mask: int = 0
    """Over the checksum; not on the disk."""
    key_number: int = 0
    """Of the key, in index rows: 1 to 15; not in the header. 0: the key is not here."""


class DataKey:
    """A key of one organisation ("": of nobody's blocks). Immutable."""

    __slots__ = ("_cipher", "_masks", "key_id", "number", "organisation", "secret")

    def __init__(self, key_id: bytes, organisation: str, number: int, secret: bytes) -> None:
        self.key_id = key_id
        self.organisation = organisation
        self.number = number
        """In index rows."""
        self.secret = secret
        self._cipher = algorithms.AES(secret)
        mask_key = hmac.digest(secret, _MASK_LABEL, "sha256")
        # One AES block for each name: names are hashes, so no two are alike.
        self._masks = Cipher(algorithms.AES(mask_key), modes.ECB())

    def encrypted(self, nonce: bytes, tag: bytes, block_hash: bytes) -> Encrypted:
        return Encrypted(self.key_id, nonce, tag, self.mask(block_hash), self.number)

    def mask(self, block_hash: bytes) -> int:
        """64 bits over the block's checksum."""
        step = self._masks.encryptor()
        return int.from_bytes(step.update(block_hash[:_AES_BLOCK_BYTES])[:8], "little")

    def masks(self, hashes: NDArray[np.void]) -> NDArray[np.uint64]:
        """The same for many names (dtype V32)."""
        heads = hashes.view(np.uint8).reshape(-1, 32)[:, :_AES_BLOCK_BYTES]
        raw = self._masks.encryptor().update(np.ascontiguousarray(heads).tobytes())
        return np.frombuffer(raw, "<u8").reshape(-1, 2)[:, 0].copy()

    def encrypt(self, nonce: bytes, bound: bytes, plain: memoryview, into: memoryview) -> bytes:
        """Fills `into`, which is as long as `plain` and may be the same memory; the tag."""
        step = Cipher(self._cipher, modes.GCM(nonce)).encryptor()
        step.authenticate_additional_data(bound)
        step.update_into(plain, into)
        step.finalize()
        return step.tag

    def decrypt(
        self, encrypted: Encrypted, bound: bytes, stored: memoryview, into: memoryview
    ) -> None:
        """The other way. Raises WrongTagError."""
        step = Cipher(self._cipher, modes.GCM(encrypted.nonce, encrypted.tag)).decryptor()
        step.authenticate_additional_data(bound)
        step.update_into(stored, into)
        try:
            step.finalize()
        except InvalidTag:
            raise WrongTagError("the tag does not match") from None


def bound_bytes(
    record: BlockRecord, stored_bytes: int, codec: Codec, owner: str, key_id: bytes
) -> bytes:
    """What the tag holds together with the stored bytes."""
    path = owner.encode()
    fields = _BOUND.pack(
        codec,
        record.payload_bytes,
        stored_bytes,
        record.checksum,
        record.namespace_id,
        record.block_hash,
        record.parent_hash,
        key_id,
        len(path),
    )
    return _BOUND_LABEL + fields + path


def organisation_of(owner: str) -> str:
    """The first rung of an owner's path; nobody's is nobody's."""
    return owner.partition("/")[0]
