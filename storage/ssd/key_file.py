"""The file of data keys, `KEYS`: wrapped by a master key, one line of JSON each, under a checksum.

    {"format": 1, "store": ..., ...}        the store, and what is counted
    {"key": ..., "organisation": ..., ...}  a data key, wrapped
    {"sha256": ...}                         over all bytes before

A wrapped key is bound to its store, id, organisation and number: it cannot be put in another's
place. The checksum finds damage; what the master key opens proves itself. Invariant: what `parse`
accepts is what `pack` wrote. Frozen: it is on disk (docs/formats/segment.md). Pure, any thread.
"""

import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from storage.errors import FormatTooNewError
from storage.ssd.encryption import KEY_BYTES, KEY_ID_BYTES, NONCE_BYTES, TAG_BYTES, DataKey

__all__ = [
    "KEY_NUMBER_MAX",
    "BadKeyFileError",
    "KeyFile",
    "MasterKey",
    "WrappedKey",
    "pack_key_file",
    "parse_key_file",
]

KEY_NUMBER_MAX = 15
"""Numbers of an organisation's keys in index rows, from 1: four bits."""

_FORMAT = 1
_FINGERPRINT_BYTES = 8
_FINGERPRINT_LABEL = b"kvtier ssd master key fingerprint 1"
_WRAP_LABEL = b"kvtier ssd data key 1\0"


class BadKeyFileError(Exception):
    """Not a file of keys as it was written; the text says why. Stays inside the SSD room."""


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A data key as it lies on the disk."""

    key_id: bytes
    organisation: str
    number: int
    made_seconds: float
    """Unix time."""
    records_max: int
    """So many records at most were encrypted with it until now."""
    master: str
    """Fingerprint of the master key that opens it."""
    nonce: bytes
    wrapped: bytes


@dataclass(frozen=True, slots=True)
class KeyFile:
    """All of it."""

    store_id: bytes
    keys: tuple[WrappedKey, ...] = ()
    """An organisation's newest is its last."""
    last_number: int = 0
    destroyed_count: int = 0
    """Keys that were destroyed on purpose, ever."""
    clear_segments: Mapping[int, int] | None = None
    """Segments that may hold bytes in clear, and their generation when the file was made; None: not
    looked at yet."""


class MasterKey:
    """A key of the operator's that wraps data keys. Immutable."""

    __slots__ = ("_aead", "fingerprint")

    def __init__(self, secret: bytes) -> None:
        """`secret`: KEY_BYTES."""
        self._aead = AESGCM(secret)
        digest = hmac.digest(secret, _FINGERPRINT_LABEL, "sha256")
        self.fingerprint = digest[:_FINGERPRINT_BYTES].hex()
        """Tells keys apart and gives nothing away."""

    def wrap(
        self,
        store_id: bytes,
        key: DataKey,
        made_seconds: float,
        records_max: int,
        random_bytes: Callable[[int], bytes],
    ) -> WrappedKey:
        nonce = random_bytes(NONCE_BYTES)
        about = _about(store_id, key.key_id, key.number, key.organisation)
        wrapped = self._aead.encrypt(nonce, key.secret, about)
        return WrappedKey(
            key.key_id,
            key.organisation,
            key.number,
            made_seconds,
            records_max,
            self.fingerprint,
            nonce,
            wrapped,
        )

    def unwrap(self, store_id: bytes, wrapped: WrappedKey) -> DataKey:
        """Raises BadKeyFileError: it is not what this key wrapped."""
        about = _about(store_id, wrapped.key_id, wrapped.number, wrapped.organisation)
        try:
            secret = self._aead.decrypt(wrapped.nonce, wrapped.wrapped, about)
        except InvalidTag:
            raise BadKeyFileError(f"data key {wrapped.key_id.hex()} does not unwrap") from None
        return DataKey(wrapped.key_id, wrapped.organisation, wrapped.number, secret)


def pack_key_file(file: KeyFile) -> bytes:
    clear = None if file.clear_segments is None else sorted(file.clear_segments.items())
    lines: list[dict[str, Any]] = [
        {
            "format": _FORMAT,
            "store": file.store_id.hex(),
            "last_number": file.last_number,
            "destroyed_count": file.destroyed_count,
            "clear_segments": clear,
        }
    ]
    lines += [
        {
            "key": key.key_id.hex(),
            "organisation": key.organisation,
            "number": key.number,
            "made_seconds": key.made_seconds,
            "records_max": key.records_max,
            "master": key.master,
            "nonce": key.nonce.hex(),
            "wrapped": key.wrapped.hex(),
        }
        for key in file.keys
    ]
    body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    return body + json.dumps({"sha256": hashlib.sha256(body).hexdigest()}).encode() + b"\n"


def parse_key_file(raw: bytes) -> KeyFile:
    """Raises BadKeyFileError, FormatTooNewError."""
    body, _, last = raw.removesuffix(b"\n").rpartition(b"\n")
    body += b"\n"
    try:
        if json.loads(last) != {"sha256": hashlib.sha256(body).hexdigest()}:
            raise BadKeyFileError("its checksum does not match")
        head, *lines = [json.loads(line) for line in body.splitlines()]
        if head["format"] > _FORMAT:
            raise FormatTooNewError(
                f"the file of data keys has format {head['format']} and this kvtier knows up to"
                f" {_FORMAT}: upgrade kvtier"
            )
        clear = head["clear_segments"]
        return KeyFile(
            store_id=_hex(head, "store", KEY_ID_BYTES),
            keys=tuple(map(_wrapped_key, lines)),
            last_number=int(head["last_number"]),
            destroyed_count=int(head["destroyed_count"]),
            clear_segments=None if clear is None else {int(i): int(g) for i, g in clear},
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadKeyFileError(f"it does not parse: {error}") from None


def _wrapped_key(line: Mapping[str, Any]) -> WrappedKey:
    number = int(line["number"])
    if not 0 < number <= KEY_NUMBER_MAX:
        raise ValueError(f"a key of number {number}")
    return WrappedKey(
        key_id=_hex(line, "key", KEY_ID_BYTES),
        organisation=str(line["organisation"]),
        number=number,
        made_seconds=float(line["made_seconds"]),
        records_max=int(line["records_max"]),
        master=str(line["master"]),
        nonce=_hex(line, "nonce", NONCE_BYTES),
        wrapped=_hex(line, "wrapped", KEY_BYTES + TAG_BYTES),
    )


def _hex(line: Mapping[str, Any], name: str, size_bytes: int) -> bytes:
    value = bytes.fromhex(line[name])
    if len(value) != size_bytes:
        raise ValueError(f"{name} of {len(value)} bytes")
    return value


def _about(store_id: bytes, key_id: bytes, number: int, organisation: str) -> bytes:
    return _WRAP_LABEL + store_id + key_id + bytes([number]) + organisation.encode()
