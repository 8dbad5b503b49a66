"""fio on the same file system: what the disk gives to a program that does nothing else.

The same block size, direct I/O, several threads, each with one request at a time and its
own part of one preallocated file that was written before; a sync at the end of a write. Blocks.
"""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from storage.bench.floor import VerifiedRead

__all__ = ["INSTALL_HINT", "Fio", "FioFigure"]

INSTALL_HINT = "fio is not installed; without it there is no ratio. On Debian: apt-get install fio"

_PREPARE_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class FioFigure:
    """One run of fio."""

    bytes_per_second: float
    cpu_seconds_per_gb: float


class Fio:
    """One file for fio in `directory`, as large as our ring and written round and round like it.

    A file of one turn's size would stay in whatever cache lies below the disk, and ours would not.
    """

    def __init__(self, directory: Path, file_bytes: int, turn_bytes: int, threads: int) -> None:
        self._program = shutil.which("fio")
        self._file = directory / "fio.data"
        self._file_bytes = file_bytes
        self._turn_bytes = turn_bytes
        self._threads = threads
        self.io_mode = "direct"
        """"direct" or "buffered", to be set to what the tier does."""
        self._offset = 0
        self._prepared = False

    @property
    def installed(self) -> bool:
        return self._program is not None

    def verified_read(self) -> VerifiedRead:
        """The same bytes as `read` reads, for whoever reads and verifies them himself."""
        direct = self.io_mode == "direct"
        return VerifiedRead(self._file, self._offset, self._turn_bytes, direct)

    def prepare(self) -> None:
        """Writes the whole file, once: writing into blocks that are only reserved costs more."""
        if not self._prepared:
            self._run("write", _PREPARE_BLOCK_BYTES, 0, self._file_bytes)
            self._prepared = True

    def write(self, block_bytes: int, synced_bytes: int = 0) -> FioFigure | None:
        """Overwrites the next turn's worth; with `synced_bytes` each time it wrote so much it
        syncs, as an append does. None without fio."""
        self._offset += self._turn_bytes
        if self._offset + self._turn_bytes > self._file_bytes:
            self._offset = 0
        return self._run("write", block_bytes, self._offset, self._turn_bytes, synced_bytes)

    def read(self, block_bytes: int) -> FioFigure | None:
        """Reads what was written last; None without fio."""
        return self._run("read", block_bytes, self._offset, self._turn_bytes)

    def _run(
        self, direction: str, block: int, offset: int, size: int, synced_bytes: int = 0
    ) -> FioFigure | None:
        if self._program is None:
            return None
        # Whole blocks per thread, or direct I/O would be refused at a part's beginning.
        direct = int(self.io_mode == "direct")
        part = size // self._threads // block * block
        command = [
            self._program,
            f"--name=kvtier-{direction}",
            f"--filename={self._file}",
            f"--rw={direction}",
            f"--bs={block}",
            f"--direct={direct}",
            "--ioengine=psync",
            "--thread",
            f"--numjobs={self._threads}",
            f"--offset={offset}",
            f"--size={part}",
            f"--offset_increment={part}",
            f"--filesize={self._file_bytes}",
            "--fallocate=posix",
            "--end_fsync=1",
            f"--fdatasync={max(1, synced_bytes // self._threads // block) if synced_bytes else 0}",
            "--randrepeat=0",
            "--group_reporting",
            "--output-format=json",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"fio failed: {done.stderr.strip() or done.stdout.strip()}")
        return _figure(done.stdout, direction)


def _figure(output: str, direction: str) -> FioFigure:
    # Warnings may stand before the JSON.
    (job,) = json.loads(output[output.index("{") :])["jobs"]
    side = job[direction]
    # Per cent of one thread's run time, summed over the threads of a group.
    share = (job["usr_cpu"] + job["sys_cpu"]) / 100
    seconds = job["job_runtime"] / 1000
    return FioFigure(float(side["bw_bytes"]), share * seconds / (side["io_bytes"] / 1e9))
