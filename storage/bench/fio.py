"""fio on the same file system: what the disk gives to a program that does nothing else.

The same block size, direct I/O, as many threads as ours, each with one request at a time and its
own part of one preallocated file that was written before; a sync at the end of a write. Blocks.
"""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

__all__ = ["INSTALL_HINT", "Fio", "FioFigure"]

INSTALL_HINT = "fio is not installed; without it there is no ratio. On Debian: apt-get install fio"


@dataclass(frozen=True, slots=True)
class FioFigure:
    """One run of fio."""

    bytes_per_second: float
    cpu_seconds_per_gb: float


class Fio:
    """One file for fio in `directory`."""

    def __init__(
        self, directory: Path, block_bytes: int, size_bytes: int, threads: int, direct: bool
    ) -> None:
        self._program = shutil.which("fio")
        self._file = directory / "fio.data"
        self._block_bytes = block_bytes
        self._size_bytes = size_bytes
        self._threads = threads
        self._direct = direct
        self._laid_out = False

    @property
    def installed(self) -> bool:
        return self._program is not None

    def write(self) -> FioFigure | None:
        """Overwrites the file; None without fio."""
        if not self._laid_out:
            # Once before anything counts: writing into blocks that are only reserved costs more.
            self._run("write")
            self._laid_out = True
        return self._run("write")

    def read(self) -> FioFigure | None:
        """Reads the file; None without fio."""
        return self._run("read")

    def remove(self) -> None:
        self._file.unlink(missing_ok=True)

    def _run(self, direction: str) -> FioFigure | None:
        if self._program is None:
            return None
        # Whole blocks per thread, or direct I/O would be refused at a part's beginning.
        part = self._size_bytes // self._threads // self._block_bytes * self._block_bytes
        command = [
            self._program,
            f"--name=kvtier-{direction}",
            f"--filename={self._file}",
            f"--rw={direction}",
            f"--bs={self._block_bytes}",
            f"--direct={int(self._direct)}",
            "--ioengine=psync",
            "--thread",
            f"--numjobs={self._threads}",
            f"--size={part}",
            f"--offset_increment={part}",
            "--fallocate=posix",
            "--end_fsync=1",
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
