"""Which parts of a cache service's arena are registered with a device, which then reads them as
they lie.

An arena is registered in pieces, by the thread that keeps the link, and stops where the system
refuses; the rest goes through staging. A slab counts only when one piece has all of it: whether a
copy may cross from one into the next, no documentation says.

Invariant: memory is unregistered before it is unmapped, because the arena that owns the mapping
is; and nothing is read from it then, because who reads holds a session, and a session the arena.
The lock guards the list of pieces; readers take it as it is.
"""

import bisect
import threading
import weakref
from collections.abc import Callable, Sequence

from worker.landing import PageBytes
from worker.transfer import ArenaMap

__all__ = ["PIECE_BYTES", "RegisteredMemory"]

PIECE_BYTES = 256 * 1024 * 1024

Piece = tuple[int, int]
"""First address, and the one past the last."""


class RegisteredMemory:
    """Of one device. `register(address, bytes)` says what went wrong, or nothing."""

    def __init__(
        self,
        register: Callable[[int, int], str],
        unregister: Callable[[int], None],
        piece_bytes: int = PIECE_BYTES,
    ) -> None:
        self._register = register
        self._unregister = unregister
        self._piece_bytes = piece_bytes
        self._lock = threading.Lock()
        self._pieces: tuple[Piece, ...] = ()
        self._arenas: weakref.WeakKeyDictionary[ArenaMap, list[Piece]] = weakref.WeakKeyDictionary()

    @property
    def registered_bytes(self) -> int:
        return sum(end - start for start, end in self._pieces)

    def add(self, arena: ArenaMap, wanted: Callable[[], bool]) -> str:
        """Registers what it can; why not all of it, or nothing. One thread.

        Stops early when `wanted` says no, and goes on from there the next time.
        """
        made = self._arenas.get(arena)
        if made is None:
            made = self._arenas[arena] = []
            weakref.finalize(arena, self._forget, made).atexit = False
        start, end = arena.addresses
        start = made[-1][1] if made else start
        while start < end and wanted():
            piece = (start, min(end, start + self._piece_bytes))
            problem = self._register(piece[0], piece[1] - piece[0])
            if problem:
                return problem
            made.append(piece)
            with self._lock:
                self._pieces = tuple(sorted((*self._pieces, piece)))
            start = piece[1]
        return ""

    def has(self, slab: PageBytes) -> bool:
        """Whether one piece has all of it."""
        pieces = self._pieces
        address = slab.__array_interface__["data"][0]
        at = bisect.bisect_right(pieces, (address, 1 << 64)) - 1
        return at >= 0 and address + slab.nbytes <= pieces[at][1]

    def _forget(self, pieces: Sequence[Piece]) -> None:
        with self._lock:
            self._pieces = tuple(piece for piece in self._pieces if piece not in pieces)
        for start, _ in pieces:
            self._unregister(start)
