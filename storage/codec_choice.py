"""Which codec pays: a comparison of measured speeds.

Restoring a payload byte takes `1 / disk` seconds as it is, and `1 / (disk * ratio) + 1 / decode`
under a codec, so a codec pays on disks slower than its break-even, `decode * (1 - 1 / ratio)`.
Storing runs behind the request, and encoding beside writing; a codec only must keep up with the
disk. That more blocks fit is not counted: nobody waits for that gain. Pure functions, any thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from storage.codec import Codec

__all__ = ["CodecChoice", "CodecSpeed", "Speeds", "break_even", "choose_codec"]


@dataclass(frozen=True, slots=True)
class CodecSpeed:
    """One codec on real blocks; bytes are payload bytes."""

    codec: Codec
    encode_bytes_per_second: float
    decode_bytes_per_second: float
    ratio: float
    """Payload bytes by stored bytes."""


@dataclass(frozen=True, slots=True)
class Speeds:
    """What one measurement found."""

    disk_bytes_per_second: float
    """Or a link's, for a tier behind one."""
    codecs: Sequence[CodecSpeed]


@dataclass(frozen=True, slots=True)
class CodecChoice:
    """A codec, and why, for people."""

    codec: Codec
    reason: str


def break_even(speed: CodecSpeed) -> float:
    """Disk bytes/s below which the codec makes restoring faster; 0 when it saves nothing."""
    return max(0.0, speed.decode_bytes_per_second * (1 - 1 / speed.ratio))


def choose_codec(speeds: Speeds) -> CodecChoice:
    """The codec that restores fastest."""
    disk = speeds.disk_bytes_per_second
    paying = [s for s in speeds.codecs if disk < break_even(s) and _keeps_up(s, disk)]
    if not paying:
        compared = "; ".join(_why_not(s, disk) for s in speeds.codecs)
        return CodecChoice(Codec.NONE, f"disk {_rate(disk)}: {compared or 'nothing was measured'}")
    best = min(paying, key=lambda s: _restore_seconds_per_byte(s, disk))
    return CodecChoice(
        best.codec,
        f"disk {_rate(disk)} is below the break-even of {best.codec.label},"
        f" {_rate(break_even(best))} (ratio {best.ratio:.2f},"
        f" decodes {_rate(best.decode_bytes_per_second)})",
    )


def _keeps_up(speed: CodecSpeed, disk: float) -> bool:
    return speed.encode_bytes_per_second >= disk


def _restore_seconds_per_byte(speed: CodecSpeed, disk: float) -> float:
    return 1 / (disk * speed.ratio) + 1 / speed.decode_bytes_per_second


def _why_not(speed: CodecSpeed, disk: float) -> str:
    label = speed.codec.label
    if disk >= break_even(speed):
        return f"{label} pays below {_rate(break_even(speed))} (ratio {speed.ratio:.2f})"
    return f"{label} encodes only {_rate(speed.encode_bytes_per_second)}"


def _rate(bytes_per_second: float) -> str:
    return f"{bytes_per_second / 1e6:,.0f} MB/s"
