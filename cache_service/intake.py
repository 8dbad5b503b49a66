"""StreamIntake: how much of each reserved block has come in over the wire.

Invariant: frames of a block come in order and without gaps, so what was received of a block is one
number; a reservation is whole when every block it is missing was received to its last byte. What
is known of a session ends with it. Only stream sessions are known here. Event loop only.
"""

from cache_service.errors import InvalidRangeError

__all__ = ["StreamIntake"]

RESERVATIONS_MAX = 4096
"""Per session, expired ones included. The oldest are forgotten: such a commit is incomplete."""


class StreamIntake:
    """Progress of stream sessions' reservations."""

    def __init__(self) -> None:
        self._sessions: dict[str, dict[str, dict[int, int]]] = {}
        """Session -> reservation -> missing index -> bytes still to come."""

    def open_session(self, session_id: str) -> None:
        self._sessions[session_id] = {}

    def close_session(self, session_id: str) -> None:
        self._sessions.pop(session_id, None)

    def streams(self, session_id: str) -> bool:
        """Whether the session's payloads travel over the wire."""
        return session_id in self._sessions

    def expect(
        self, session_id: str, reservation_id: str, missing: tuple[int, ...], block_bytes: int
    ) -> None:
        """A reservation was made, or its answer repeated: what came in so far stays."""
        reservations = self._sessions.get(session_id)
        if reservations is None or not reservation_id or reservation_id in reservations:
            return
        while len(reservations) >= RESERVATIONS_MAX:
            del reservations[next(iter(reservations))]
        reservations[reservation_id] = dict.fromkeys(missing, block_bytes)

    def forget(self, session_id: str, reservation_id: str) -> None:
        """The reservation ended. Idempotent."""
        self._sessions.get(session_id, {}).pop(reservation_id, None)

    def take(
        self,
        session_id: str,
        reservation_id: str,
        index: int,
        block_bytes: int,
        frame: tuple[int, int],
    ) -> bool:
        """Notes a `frame` (offset, size) of block `index`; True when the block is whole now.

        A frame at offset 0 starts its block again. Raises InvalidRangeError for a frame that is
        not the next one, empty, or past the block's end; then it must not be copied.
        """
        offset, size = frame
        blocks = self._sessions.get(session_id, {}).get(reservation_id, {})
        if index not in blocks:
            raise InvalidRangeError(f"block {index} is not reserved here", index=index)
        next_offset = block_bytes - blocks[index]
        if offset not in (0, next_offset):
            raise InvalidRangeError(
                f"block {index} continues at byte {next_offset}, not {offset}", index=index
            )
        if size < 1 or offset + size > block_bytes:
            raise InvalidRangeError(
                f"{size} bytes at {offset} do not fit a block of {block_bytes} bytes", index=index
            )
        blocks[index] = block_bytes - offset - size
        return blocks[index] == 0

    def first_short(self, session_id: str, reservation_id: str) -> int | None:
        """The first missing block that did not come in whole; None when all did.

        None also for a reservation unknown here: what became of it is the core's to say.
        """
        blocks = self._sessions.get(session_id, {}).get(reservation_id, {})
        return next((index for index, to_come in blocks.items() if to_come), None)
