"""Keys of sealed extents: AES-256-GCM, a key of its own for each extent.

    key file (32 bytes, the same on all hosts) + 16 random bytes of the extent -> its key

So no nonce can be given twice under one key, however many hosts write. Whoever has the engine
and not the key file learns sizes and names, as on the SSD (docs/adr/0020), and can put nothing in
another's place: the tag binds the bytes to namespace, names and generation. Frozen: extents depend
on it (docs/formats/shared-extent.md). Pure, any thread.
"""

import hashlib
import hmac
import secrets
from collections.abc import Sequence

__all__ = ["KEY_BYTES", "SALT_BYTES", "Sealing"]

KEY_BYTES = 32
SALT_BYTES = 16
FINGERPRINT_BYTES = 8

_KEY_LABEL = b"kvtier shared extent key 1\0"
_FINGERPRINT_LABEL = b"kvtier shared key fingerprint 1\0"


class Sealing:
    """The keys of a shared tier: the first one seals, all of them open."""

    __slots__ = ("_by_fingerprint", "fingerprint")

    def __init__(self, keys: Sequence[bytes]) -> None:
        """REQUIRES: at least one, each of 32 bytes."""
        assert keys
        assert all(len(key) == KEY_BYTES for key in keys)
        self._by_fingerprint = {_fingerprint(key): key for key in reversed(keys)}
        self.fingerprint = _fingerprint(keys[0])
        """Of the key that seals; 8 bytes."""

    def new_salt(self) -> bytes:
        return secrets.token_bytes(SALT_BYTES)

    def extent_key(self, fingerprint: bytes, salt: bytes) -> bytes | None:
        """The extent's own key; None: it was sealed with a key that is not here."""
        key = self._by_fingerprint.get(fingerprint)
        return None if key is None else hmac.digest(key, _KEY_LABEL + salt, "sha256")


def _fingerprint(key: bytes) -> bytes:
    return hmac.new(key, _FINGERPRINT_LABEL, hashlib.sha256).digest()[:FINGERPRINT_BYTES]
