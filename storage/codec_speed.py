"""How fast a codec is on given blocks, on this machine, now. The clock is injected; any thread."""

from collections.abc import Callable, Sequence

from storage.codec import Codec, decode, encode
from storage.codec_choice import CodecSpeed

__all__ = ["measure_codec"]

_SECONDS_MIN = 1e-9
"""For clocks too coarse to have moved."""


def measure_codec(
    codec: Codec, payloads: Sequence[memoryview], clock: Callable[[], float]
) -> CodecSpeed:
    """REQUIRES: at least one payload, none of them empty. The first is also the warm-up."""
    size = sum(payload.nbytes for payload in payloads)
    target = memoryview(bytearray(max(payload.nbytes for payload in payloads)))
    decode(codec, encode(codec, payloads[0]), target[: payloads[0].nbytes])
    started = clock()
    stored = [encode(codec, payload) for payload in payloads]
    encoded = clock()
    for each, payload in zip(stored, payloads, strict=True):
        decode(codec, each, target[: payload.nbytes])
    decoded = clock()
    return CodecSpeed(
        codec,
        size / max(encoded - started, _SECONDS_MIN),
        size / max(decoded - encoded, _SECONDS_MIN),
        size / sum(each.nbytes for each in stored),
    )
