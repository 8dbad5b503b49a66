"""Places to break things in.

A small file system of its own, to be filled or made read-only, which holds for root too; and a
folder in memory, for tests that do the same thing hundreds of times.
"""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.ssd.key_ring import NO_ENCRYPTION, Encryption

SMALL_BYTES = 64 << 20


class SmallDisk:
    """A mounted tmpfs."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def free_bytes(self) -> int:
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def fill(self) -> None:
        """Takes the room that is left, to the last page."""
        with (self.path / "filler").open("ab", buffering=0) as file:
            while free := self.free_bytes:
                file.write(bytes(free))

    def empty(self) -> None:
        (self.path / "filler").unlink()

    def remount(self, option: str) -> None:
        """`option` is "ro" or "rw"."""
        mount = ["mount", "-o", f"remount,{option}", str(self.path)]
        subprocess.run(mount, check=True, capture_output=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    path = tmp_path / "disk"
    path.mkdir()
    options = f"size={SMALL_BYTES},mode=0700"
    mount = ["mount", "-t", "tmpfs", "-o", options, "kvtier-test", str(path)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting is not permitted here")
    yield SmallDisk(path)
    subprocess.run(["umount", "-l", str(path)], check=True, capture_output=True)


@pytest.fixture(params=["clear", "encrypted"])
def encryption(request: pytest.FixtureRequest) -> Encryption:
    """Of a store that a test breaks: it is to behave alike with and without."""
    return Encryption((bytes(range(32)),)) if request.param == "encrypted" else NO_ENCRYPTION


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: there a sync costs nothing, and neither a kill nor
    damage can tell the difference."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="kvtier-", dir=memory) as folder:
        yield Path(folder)
