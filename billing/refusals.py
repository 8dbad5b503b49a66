"""Refused events: how each is named, and the hash chain that holds them together.

    link  = "kvtier-refused-event 1" LF [sequence,"<content hash>","<request id>","<reason>",T] LF
    hash  = SHA-256(previous hash || link)

Invariant: as of the ledger's entries, equal content gives equal bytes for ever; a row cannot be
changed or left out without breaking the chain behind it. Frozen: it is hashed. Pure, any thread.
"""

import hashlib
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as _quoted

__all__ = ["REFUSED_GENESIS", "RefusedLink", "refusal_hash", "storable"]

REFUSED_GENESIS = hashlib.sha256(b"kvtier-refused-events").digest()
"""What the first link continues."""


@dataclass(frozen=True, slots=True)
class RefusedLink:
    """One refused event in its chain; `content_hash` stands for its bytes."""

    sequence: int
    """From 1, without gaps."""
    content_hash: bytes
    request_id: str
    """As stored."""
    reason: str
    received_time_ns: int

    def hash_after(self, previous: bytes) -> bytes:
        line = (
            f'[{self.sequence},"{self.content_hash.hex()}",{_quoted(self.request_id)}'
            f",{_quoted(self.reason)},{self.received_time_ns}]"
        )
        return hashlib.sha256(previous + f"kvtier-refused-event 1\n{line}\n".encode()).digest()


def refusal_hash(reason: str, wire: bytes) -> bytes:
    """Names a refused event, so that sending it again keeps it once."""
    return hashlib.sha256(f"{reason}\n".encode() + wire).digest()


def storable(text: str) -> str:
    """`text` for a column: PostgreSQL takes no NUL. The event's own bytes are kept beside it."""
    return text.replace("\x00", "\ufffd")
