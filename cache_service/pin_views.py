"""A pin, as it is kept and as it is shown; its bytes as a memo on the SSD. Frozen data."""

import json
from dataclasses import dataclass

from cache_service.chains import Chain
from kvtier.keys import HASH_BYTES, NamespaceId

__all__ = ["Pin", "PinView"]


@dataclass(frozen=True, slots=True)
class Pin:
    """A chain that stays cached until a time, and for whom. Times are Unix seconds."""

    pin_id: str
    namespace_id: NamespaceId
    chain: Chain
    """From its first block on."""
    block_bytes: int
    owner: str
    created: float
    expires: float

    @property
    def memo_name(self) -> bytes:
        return bytes.fromhex(self.pin_id)

    def memo(self) -> bytes:
        """A line of JSON, then the packed hashes. Frozen: it is on disk."""
        fields = {
            "namespace_id": self.namespace_id.hex(),
            "block_bytes": self.block_bytes,
            "owner": self.owner,
            "created": self.created,
            "expires": self.expires,
        }
        return json.dumps(fields, sort_keys=True).encode() + b"\n" + self.chain.packed

    @classmethod
    def of_memo(cls, name: bytes, memo: bytes) -> "Pin":
        """Raises ValueError for what is no pin's."""
        line, _, packed = memo.partition(b"\n")
        fields = json.loads(line)
        if not packed or len(packed) % HASH_BYTES:
            raise ValueError("a pin names whole hashes")
        try:
            return cls(
                name.hex(),
                NamespaceId(bytes.fromhex(fields["namespace_id"])),
                Chain(packed),
                int(fields["block_bytes"]),
                str(fields["owner"]),
                float(fields["created"]),
                float(fields["expires"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(str(error)) from None


@dataclass(frozen=True, slots=True)
class PinView:
    """A pin, and what of it is cached now."""

    pin: Pin
    cached_count: int
    ssd_count: int
    """Of those, how many the SSD has: what a crash leaves."""
    survives_restart: bool
    """Its memo is on the SSD."""
