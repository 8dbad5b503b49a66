"""Checkpoints and keys as messages of `kvtier.v1` and as JSON files, and back. Pure, any thread.

Invariant: what comes in is taken as it is; whether it holds is for `checkpoint_check`.
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from billing.checkpoint import Checkpoint, LedgerKey
from billing.checkpoint_check import Kept, KeptEntry, Trust
from kvtier.v1 import usage_pb2

__all__ = [
    "checkpoint_data",
    "checkpoint_message",
    "kept_entry_message",
    "kept_from_data",
    "kept_message",
    "kept_of",
    "key_message",
    "trust_of",
]

_NS = 10**9


def checkpoint_message(checkpoint: Checkpoint, public_key: bytes) -> usage_pb2.Checkpoint:
    message = usage_pb2.Checkpoint(
        ledger_id=checkpoint.ledger_id,
        number=checkpoint.number,
        position=checkpoint.position,
        entry_hash=checkpoint.entry_hash,
        refused_count=checkpoint.refused_count,
        refused_hash=checkpoint.refused_hash,
        key_id=checkpoint.key_id,
        signature=checkpoint.signature,
        public_key=public_key,
    )
    message.create_time.FromNanoseconds(checkpoint.time_ns)
    return message


def kept_message(kept: Kept) -> usage_pb2.Checkpoint:
    return checkpoint_message(kept.checkpoint, kept.public_key)


def kept_of(message: usage_pb2.Checkpoint) -> Kept:
    time = message.create_time
    checkpoint = Checkpoint(
        ledger_id=message.ledger_id,
        number=message.number,
        position=message.position,
        entry_hash=message.entry_hash,
        refused_count=message.refused_count,
        refused_hash=message.refused_hash,
        time_ns=int(time.seconds) * _NS + int(time.nanos),
        key_id=message.key_id,
        signature=message.signature,
    )
    return Kept(checkpoint, message.public_key)


def trust_of(request: usage_pb2.VerifyLedgerRequest) -> Trust:
    return Trust(
        tuple(kept_of(message) for message in request.kept_checkpoints),
        request.trusted_public_key or None,
        tuple(
            KeptEntry(
                each.ledger_id, each.position, each.entry_hash, each.request_id, each.public_key
            )
            for each in request.kept_entries
        ),
    )


def kept_entry_message(entry: KeptEntry) -> usage_pb2.KeptEntry:
    return usage_pb2.KeptEntry(
        ledger_id=entry.ledger_id,
        position=entry.position,
        entry_hash=entry.entry_hash,
        request_id=entry.request_id,
        public_key=entry.public_key,
    )


def key_message(key: LedgerKey) -> usage_pb2.LedgerKey:
    message = usage_pb2.LedgerKey(number=key.number, key_id=key.key_id, public_key=key.public_key)
    message.create_time.FromNanoseconds(key.time_ns)
    return message


def checkpoint_data(kept: Kept) -> dict[str, Any]:
    """As a file to keep elsewhere: everything that verification needs."""
    checkpoint = kept.checkpoint
    return {
        "ledger": checkpoint.ledger_id,
        "number": checkpoint.number,
        "position": checkpoint.position,
        "entry_hash": checkpoint.entry_hash.hex(),
        "refused_count": checkpoint.refused_count,
        "refused_hash": checkpoint.refused_hash.hex(),
        "time_ns": checkpoint.time_ns,
        "key": checkpoint.key_id,
        "signature": base64.b64encode(checkpoint.signature).decode(),
        "public_key": base64.b64encode(kept.public_key).decode(),
    }


def kept_from_data(data: Mapping[str, Any]) -> Kept:
    """Inverse of `checkpoint_data`. Raises ValueError."""
    try:
        checkpoint = Checkpoint(
            ledger_id=str(data["ledger"]),
            number=int(data["number"]),
            position=int(data["position"]),
            entry_hash=bytes.fromhex(data["entry_hash"]),
            refused_count=int(data["refused_count"]),
            refused_hash=bytes.fromhex(data["refused_hash"]),
            time_ns=int(data["time_ns"]),
            key_id=str(data["key"]),
            signature=base64.b64decode(data["signature"], validate=True),
        )
        return Kept(checkpoint, base64.b64decode(data["public_key"], validate=True))
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise ValueError(f"not a checkpoint of kvtier: {error}") from None
