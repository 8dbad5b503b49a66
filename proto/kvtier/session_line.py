"""Frames of the session line, as `docs/formats/arena.md` describes them: both ends read and write
here.

A frame is one call, or the answer to one. Invariant: `Frames` gives only whole frames that the
format allows from that side; anything else is a MalformedFrameError, and the line is then of no
more use. `Frames` belongs to one reader; the rest is pure.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum

from kvtier.bulk import MalformedFrameError

__all__ = [
    "FRAME_BYTES_MAX",
    "FROM_CLIENT",
    "FROM_SERVICE",
    "HEADER_BYTES",
    "Frames",
    "LineFrame",
    "Method",
    "Outcome",
    "pack",
]

_HEADER = struct.Struct("<IIB3x")

HEADER_BYTES = _HEADER.size
FRAME_BYTES_MAX = 8 * 1024 * 1024
"""Of a frame's message: twice what the longest chain that a service takes needs."""


class Method(IntEnum):
    """Calls that travel over the line; the message is the one of the gRPC call of that name."""

    ACQUIRE_RESIDENT = 1
    RESERVE_BLOCKS = 2
    COMMIT_BLOCKS = 3
    LOOKUP_PREFIX = 4


class Outcome(IntEnum):
    """What an answer's message is: the call's own, or a `google.rpc.Status`."""

    ANSWER = 1
    STATUS = 2


FROM_CLIENT = frozenset(int(method) for method in Method)
FROM_SERVICE = frozenset(int(outcome) for outcome in Outcome)


@dataclass(frozen=True, slots=True)
class LineFrame:
    call: int
    """The client's number for it, below 2**32; its answer has the same."""
    kind: int
    """A `Method` from the client, an `Outcome` from the service."""
    message: bytes


def pack(frame: LineFrame) -> bytes:
    """REQUIRES: the message has at most `FRAME_BYTES_MAX` bytes."""
    return _HEADER.pack(len(frame.message), frame.call, frame.kind) + frame.message


class Frames:
    """Cuts what a peer sends into frames. `kinds`: those it may send."""

    def __init__(self, kinds: frozenset[int]) -> None:
        self._kinds = kinds
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[LineFrame]:
        """The frames that `data` completes. Raises MalformedFrameError."""
        rest = self._rest
        rest += data
        frames: list[LineFrame] = []
        at, size = 0, len(rest)
        with memoryview(rest) as view:
            while size - at >= HEADER_BYTES:
                length, call, kind = _HEADER.unpack_from(view, at)
                if length > FRAME_BYTES_MAX or kind not in self._kinds:
                    raise MalformedFrameError("no frame of the session line")
                end = at + HEADER_BYTES + length
                if end > size:
                    break
                frames.append(LineFrame(call, kind, bytes(view[at + HEADER_BYTES : end])))
                at = end
        del rest[:at]
        return frames
