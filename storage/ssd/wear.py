"""Wear: how much was ever written to the segments, and a few bytes that the owner keeps with it.

    count -> row noted in the index, not synced -> the bytes are written -> the next batch syncs it

Invariant: what is counted is on its way to the disk at the latest by then, so a killed process has
counted at least what it wrote; a power cut may lose the count of the batch that was under way. One
row of the index, docs/formats/segment.md. Written by the writer thread; the total is frozen, and
read from any thread.
"""

import struct
from dataclasses import dataclass

__all__ = ["NOTE_BYTES_MAX", "WEAR_KEY", "Wear", "pack_wear", "parse_wear"]

WEAR_KEY = b"w"
NOTE_BYTES_MAX = 128

_WEAR = struct.Struct("<dQQQ")


@dataclass(frozen=True, slots=True)
class Wear:
    """Since the store was made, or since it was first counted. RocksDB's own files are not in it:
    a few hundred bytes a block."""

    since_seconds: float
    """Unix time."""
    whole: bool
    """False: something was written before that."""
    payload_bytes: int = 0
    """Of blocks, each time they were written."""
    device_bytes: int = 0
    """With headers, rounding and the zeros of pre-writing."""
    note: bytes = b""
    """The owner's, at most `NOTE_BYTES_MAX`."""


def pack_wear(wear: Wear) -> bytes:
    """The row's fields, still to be sealed."""
    assert len(wear.note) <= NOTE_BYTES_MAX
    counts = (wear.whole, wear.payload_bytes, wear.device_bytes)
    return _WEAR.pack(wear.since_seconds, *counts) + wear.note


def parse_wear(fields: bytes) -> Wear:
    """REQUIRES: as `pack_wear` made them."""
    since, whole, payload, device = _WEAR.unpack_from(fields)
    return Wear(since, bool(whole), payload, device, fields[_WEAR.size :])
