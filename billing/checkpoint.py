"""Signed checkpoints: what the ledger was at a time, said by its key; and the keys, each vouched
for by the one before.

    checkpoint = "kvtier-ledger-checkpoint 1" LF
                 {"entry_hash":"..","key":"..","ledger":"..","number":N,"position":P,
                  "refused_count":R,"refused_hash":"..","time_ns":T} LF              (one line)
    key        = "kvtier-ledger-key 1" LF
                 {"ledger":"..","number":N,"public_key":"..","time_ns":T} LF

Signatures are Ed25519 over these bytes. A key's is made by the key before it, the first one's by
itself; so is that of a key which took the place of a lost one, and trust ends there. Invariant:
equal content gives equal bytes for ever. Frozen: it is signed. Pure, any thread.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from billing.meter import Head

__all__ = [
    "Checkpoint",
    "LedgerKey",
    "key_id_of",
    "public_bytes",
    "sign_checkpoint",
    "sign_key",
    "signed_by",
]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One signed statement; may have come from a file, so nothing about it is taken on trust."""

    ledger_id: str
    number: int
    """From 1, without gaps."""
    position: int
    """Entries there were."""
    entry_hash: bytes
    refused_count: int
    refused_hash: bytes
    time_ns: int
    key_id: str
    signature: bytes = b""

    def signed_bytes(self) -> bytes:
        fields = {
            "entry_hash": self.entry_hash.hex(),
            "key": self.key_id,
            "ledger": self.ledger_id,
            "number": self.number,
            "position": self.position,
            "refused_count": self.refused_count,
            "refused_hash": self.refused_hash.hex(),
            "time_ns": self.time_ns,
        }
        return _lines("kvtier-ledger-checkpoint 1", fields)

    def holds_under(self, public_key: bytes) -> bool:
        """Whether the key of its `key_id` is this one, and signed it."""
        return key_id_of(public_key) == self.key_id and signed_by(
            public_key, self.signature, self.signed_bytes()
        )


@dataclass(frozen=True, slots=True)
class LedgerKey:
    """A public key of the ledger."""

    number: int
    public_key: bytes
    time_ns: int
    signature: bytes = b""

    @property
    def key_id(self) -> str:
        return key_id_of(self.public_key)

    def signed_bytes(self, ledger_id: str) -> bytes:
        fields = {
            "ledger": ledger_id,
            "number": self.number,
            "public_key": self.public_key.hex(),
            "time_ns": self.time_ns,
        }
        return _lines("kvtier-ledger-key 1", fields)

    def vouched_by(self, public_key: bytes, ledger_id: str) -> bool:
        return signed_by(public_key, self.signature, self.signed_bytes(ledger_id))


def sign_checkpoint(
    private: Ed25519PrivateKey, ledger_id: str, number: int, head: Head, time_ns: int
) -> Checkpoint:
    def made(signature: bytes) -> Checkpoint:
        return Checkpoint(
            ledger_id=ledger_id,
            number=number,
            position=head.position,
            entry_hash=head.hash,
            refused_count=head.refused_count,
            refused_hash=head.refused_hash,
            time_ns=time_ns,
            key_id=key_id_of(public_bytes(private)),
            signature=signature,
        )

    return made(private.sign(made(b"").signed_bytes()))


def sign_key(
    by: Ed25519PrivateKey, public_key: bytes, ledger_id: str, number: int, time_ns: int
) -> LedgerKey:
    unsigned = LedgerKey(number, public_key, time_ns)
    return LedgerKey(number, public_key, time_ns, by.sign(unsigned.signed_bytes(ledger_id)))


def key_id_of(public_key: bytes) -> str:
    """Names a key: the first 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(public_key).hexdigest()[:16]


def public_bytes(private: Ed25519PrivateKey) -> bytes:
    """32 bytes."""
    return private.public_key().public_bytes_raw()


def signed_by(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether the key, 32 bytes, made the signature, 64 bytes, over the message."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _lines(title: str, fields: Mapping[str, Any]) -> bytes:
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return f"{title}\n{text}\n".encode()
