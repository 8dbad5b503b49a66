"""A machine that fails on demand: at the n-th call of a kind, or by a power cut."""

import errno
import os
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from storage.env import Buffer, RealEnv
from storage.tier import PAGE_BYTES


@dataclass
class _Undo:
    """Bytes that an unsynced write replaced."""

    path: Path
    offset: int
    before: bytes


@dataclass
class FaultyEnv(RealEnv):
    """Real files; every call may be told to fail. Thread-safe where the tier uses threads."""

    refuse_direct: bool = False
    short_write_bytes: int = 0
    """Largest single write when not 0; a multiple of the page size."""
    seeds: list[int] = field(default_factory=list)
    """Handed out before random ones."""
    randomness: random.Random | None = None
    """Where random bytes come from; None: the real ones."""
    wall: float | None = None
    """What the wall clock says; None: the real one."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._plans: dict[str, tuple[int, int]] = {}
        self._paths: dict[int, Path] = {}
        self._unsynced: list[_Undo] = []
        self._power_left: int | None = None
        self.calls: dict[str, int] = {}

    # --- what a test asks for ---------------------------------------------------------------

    def fail(self, call: str, code: int, nth: int = 1) -> None:
        """The nth `call` from now raises OSError(code); once."""
        self._plans[call] = (nth, code)

    @property
    def failure_ahead(self) -> bool:
        """A failure was asked for and has not come up yet."""
        return bool(self._plans)

    def cut_power_after(self, changes: int) -> None:
        """After that many more writes and syncs the disk takes nothing any more."""
        self._power_left = changes

    def apply_power_cut(self, original: Path, copy: Path, survives: Callable[[], bool]) -> None:
        """In `copy`, each page that was never synced falls back unless it `survives`."""
        for undo in reversed(self._unsynced):
            target = copy / undo.path.relative_to(original)
            with target.open("r+b") as file:
                for start in range(0, len(undo.before), PAGE_BYTES):
                    if not survives():
                        file.seek(undo.offset + start)
                        file.write(undo.before[start : start + PAGE_BYTES])

    # --- the calls --------------------------------------------------------------------------

    def open(self, path: Path, flags: int) -> int:
        self._note("open")
        if self.refuse_direct and flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fd = super().open(path, flags)
        self._paths[fd] = path
        return fd

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        self._note("pwritev", change=True)
        if self.short_write_bytes:
            buffers = [buffers[0][: self.short_write_bytes]]
        size = sum(b.nbytes for b in buffers)
        before = self._paths[fd].read_bytes()[offset : offset + size]
        with self._lock:
            self._unsynced.append(_Undo(self._paths[fd], offset, before))
        return super().pwritev(fd, buffers, offset)

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        self._note("preadv")
        return super().preadv(fd, buffers, offset)

    def unlink(self, path: Path) -> None:
        self._note("unlink")
        super().unlink(path)
        with self._lock:
            self._unsynced = [undo for undo in self._unsynced if undo.path != path]

    def fdatasync(self, fd: int) -> None:
        self._note("fdatasync", change=True)
        super().fdatasync(fd)
        with self._lock:
            path = self._paths[fd]
            self._unsynced = [undo for undo in self._unsynced if undo.path != path]

    def fallocate(self, fd: int, size_bytes: int) -> None:
        self._note("fallocate")
        super().fallocate(fd, size_bytes)

    def mkdir(self, path: Path) -> None:
        self._note("mkdir")
        super().mkdir(path)

    def rename(self, source: Path, target: Path) -> None:
        self._note("rename")
        super().rename(source, target)

    def wall_seconds(self) -> float:
        return super().wall_seconds() if self.wall is None else self.wall

    def random_seed(self) -> int:
        return self.seeds.pop(0) if self.seeds else super().random_seed()

    def random_bytes(self, count: int) -> bytes:
        chosen = self.randomness
        return super().random_bytes(count) if chosen is None else chosen.randbytes(count)

    def _note(self, call: str, change: bool = False) -> None:
        with self._lock:
            self.calls[call] = self.calls.get(call, 0) + 1
            if change and self._power_left is not None:
                if self._power_left == 0:
                    raise OSError(errno.EIO, "the power is off")
                self._power_left -= 1
            left, code = self._plans.get(call, (0, 0))
            if left == 1:
                del self._plans[call]
                raise OSError(code, os.strerror(code))
            if left:
                self._plans[call] = (left - 1, code)
