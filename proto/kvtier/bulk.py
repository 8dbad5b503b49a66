"""Frames of the bulk lane, as `docs/formats/bulk.md` describes them: both ends read and write here.

Invariant: `unpack` returns only what the format allows from that side; everything else is a
MalformedFrameError. Pure; any thread.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from kvtier.errors import KvtierError

__all__ = [
    "FRAME_BYTES_MAX",
    "FROM_CLIENT",
    "FROM_SERVICE",
    "HEADER_BYTES",
    "ID_BYTES",
    "PIECES_MAX",
    "TICKET_BYTES",
    "BlockRun",
    "Frame",
    "Kind",
    "MalformedFrameError",
    "StopReason",
    "id_of",
    "pack",
    "pack_load",
    "raw_id",
    "stop_reason",
    "unpack",
    "unpack_load",
]

_HEADER = struct.Struct("<4sBBHIIQQ")
_LOAD = struct.Struct("<16sI")
_MAGIC = b"KVB2"

HEADER_BYTES = _HEADER.size
TICKET_BYTES = 32
ID_BYTES = 16
FRAME_BYTES_MAX = 1024 * 1024
"""Of a frame's payload. One system call sends or receives as much: each may wake the peer, which
costs more than the call."""
PIECES_MAX = 512
"""Of blocks, in a frame that is sent: the kernel takes 1,024 pieces at a time."""


class MalformedFrameError(KvtierError):
    """Bytes that are no frame, or a frame that does not belong there."""

    reason = "MALFORMED_FRAME"


class Kind(IntEnum):
    """What a frame says."""

    HELLO = 1
    WELCOME = 2
    LOAD = 3
    STORE = 4
    GO = 5
    DATA = 6
    DONE = 7
    STOP = 8
    CALLS = 9


_KINDS = {int(kind): kind for kind in Kind}

FROM_CLIENT = frozenset({Kind.HELLO, Kind.LOAD, Kind.STORE, Kind.DATA, Kind.CALLS})
FROM_SERVICE = frozenset({Kind.WELCOME, Kind.GO, Kind.DATA, Kind.DONE, Kind.STOP})

_LENGTHS = {
    Kind.HELLO: TICKET_BYTES,
    Kind.LOAD: _LOAD.size,
    Kind.STORE: ID_BYTES,
    Kind.WELCOME: 0,
    Kind.GO: 0,
    Kind.DONE: 0,
    Kind.STOP: 0,
    Kind.CALLS: 0,
}
"""Of every kind whose payload has one length."""

_WITH_INDEX = frozenset({Kind.LOAD, Kind.GO, Kind.DATA, Kind.DONE, Kind.STOP})
_WITHOUT_CALL = frozenset({Kind.HELLO, Kind.WELCOME, Kind.CALLS})


class StopReason(IntEnum):
    """Why the service refuses or ends a call; names are reasons as the control lane has them."""

    MALFORMED_FRAME = 1
    TICKET_REFUSED = 2
    TOO_MANY_LANES = 3
    SESSION_UNKNOWN = 4
    LEASE_UNKNOWN = 5
    LEASE_EXPIRED = 6
    RESERVATION_UNKNOWN = 7
    RESERVATION_EXPIRED = 8
    INVALID_RANGE = 9
    STALLED = 10
    SHUTTING_DOWN = 11
    INTERNAL = 12


_STOP_CODES = frozenset(StopReason)


def stop_reason(reason: str) -> StopReason:
    """The code of an error's reason; INTERNAL for one that has none."""
    return StopReason.__members__.get(reason, StopReason.INTERNAL)


@dataclass(frozen=True, slots=True)
class Frame:
    """A header."""

    kind: Kind
    call: int = 0
    index: int = 0
    offset: int = 0
    length: int = 0


def pack(frame: Frame) -> bytes:
    """REQUIRES: a frame that `unpack` would return."""
    return _HEADER.pack(
        _MAGIC, frame.kind, 0, 0, frame.call, frame.index, frame.offset, frame.length
    )


def unpack(header: bytes | bytearray, kinds: frozenset[Kind]) -> Frame:
    """A header of `HEADER_BYTES` bytes, of one of `kinds`. Raises MalformedFrameError."""
    if len(header) != HEADER_BYTES:
        raise MalformedFrameError(f"a header has {HEADER_BYTES} bytes, not {len(header)}")
    magic, number, flags, reserved, call, index, offset, length = _HEADER.unpack(header)
    if magic != _MAGIC or flags or reserved:
        raise MalformedFrameError("this is not the bulk lane's format 2")
    kind = _KINDS.get(number)
    if kind is None or kind not in kinds:
        raise MalformedFrameError(f"a frame of kind {number} does not belong here")
    frame = Frame(kind, call, index, offset, length)
    if kind is Kind.DATA and call and 1 <= length <= FRAME_BYTES_MAX:
        return frame
    if (
        (not _right_length(frame))
        or (index and frame.kind not in _WITH_INDEX)
        or (offset and frame.kind is not Kind.DATA)
        or (call == 0) > (frame.kind in _WITHOUT_CALL or frame.kind is Kind.STOP)
        or (call and frame.kind in _WITHOUT_CALL)
        or (frame.kind is Kind.STOP and index not in _STOP_CODES)
    ):
        raise MalformedFrameError(f"a {frame.kind.name} with fields it cannot have")
    return frame


def _right_length(frame: Frame) -> bool:
    fixed = _LENGTHS.get(frame.kind)
    return 1 <= frame.length <= FRAME_BYTES_MAX if fixed is None else frame.length == fixed


class BlockRun:
    """The blocks of one call, walked from the first to the last byte, frame by frame.

    One thread. Invariant: pieces come in order, and none reaches past its block.
    """

    def __init__(
        self, indexes: Sequence[int], views: Sequence[memoryview], whole_count: int = 0
    ) -> None:
        """`indexes`: positions in the chain, one for each of `views` (contiguous bytes, none
        empty). Begins after the first `whole_count` blocks."""
        self._indexes = indexes
        self._views = views
        self._offset = 0
        self.whole_count = whole_count
        """Leading blocks that are behind us, to their last byte."""

    def ended(self) -> bool:
        return self.whole_count == len(self._views)

    def place(self) -> tuple[int, int]:
        """Where the next byte belongs: position in the chain, and byte of that block.
        REQUIRES: not `ended`."""
        return self._indexes[self.whole_count], self._offset

    def take(self, size: int) -> list[memoryview]:
        """The next `size` bytes, the part of each block for itself. Raises MalformedFrameError when
        there are not so many; then nothing is taken."""
        at, offset = self.whole_count, self._offset
        pieces: list[memoryview] = []
        while size:
            if at == len(self._views):
                raise MalformedFrameError("more bytes than the call's blocks have")
            view = self._views[at]
            piece = view if not offset and len(view) <= size else view[offset : offset + size]
            pieces.append(piece)
            size -= len(piece)
            offset += len(piece)
            if offset == len(view):
                at, offset = at + 1, 0
        self.whole_count, self._offset = at, offset
        return pieces

    def frames(self, call: int) -> Iterator[tuple[Frame, list[memoryview]]]:
        """The DATA of all that is left, about `FRAME_BYTES_MAX` bytes each; a block that would go
        over a frame's end begins the next one where it fits there."""
        while not self.ended():
            index, offset = self.place()
            size = self._frame_bytes()
            yield Frame(Kind.DATA, call, index, offset, size), self.take(size)

    def _frame_bytes(self) -> int:
        size = min(FRAME_BYTES_MAX, len(self._views[self.whole_count]) - self._offset)
        for at in range(self.whole_count + 1, min(len(self._views), self.whole_count + PIECES_MAX)):
            if size + len(self._views[at]) > FRAME_BYTES_MAX:
                break
            size += len(self._views[at])
        return size


def pack_load(lease_id: bytes, count: int) -> bytes:
    """A LOAD's payload."""
    return _LOAD.pack(lease_id, count)


def unpack_load(payload: bytes | bytearray) -> tuple[bytes, int]:
    """Lease id and block count of a LOAD. REQUIRES: as long as its header said."""
    lease_id, count = _LOAD.unpack(payload)
    return lease_id, count


def raw_id(text: str) -> bytes:
    """A lease's or reservation's id as it travels here. Raises MalformedFrameError."""
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(raw) != ID_BYTES:
        raise MalformedFrameError("an id has 32 hexadecimal digits")
    return raw


def id_of(raw: bytes | bytearray) -> str:
    """The id as the control lane writes it."""
    return raw.hex()
