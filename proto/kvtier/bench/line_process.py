"""A child process that is told lines and answers with lines. One thread.

Every wait has a bound; a child that dies or hangs is an error with its last words. It ends when its
standard input does.
"""

import selectors
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from kvtier.bench.errors import BenchError

__all__ = ["LineProcess", "line_process"]

_LAST_WORDS_LINES = 3


class LineProcess:
    """A running child; see `line_process`."""

    def __init__(self, process: "subprocess.Popen[str]", what: str, log_path: Path) -> None:
        self._process = process
        self._what = what
        self._log_path = log_path

    def say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def answer(self, seconds_max: float) -> str:
        """Its next line. Raises BenchError."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            line = self._process.stdout.readline() if selector.select(seconds_max) else ""
        if not line:
            words = self._log_path.read_text(errors="replace").strip().splitlines()
            last = " | ".join(words[-_LAST_WORDS_LINES:])
            raise BenchError(f"{self._what} ended or hangs: {last}")
        return line


@contextmanager
def line_process(
    what: str,
    command: Sequence[str],
    log_path: Path,
    stop_seconds_max: float,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[LineProcess]:
    """A started child, whose errors go to `log_path`; stopped at the end. Raises OSError."""
    with (
        log_path.open("wb") as log,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=cwd,
            env=env,
        ) as process,
    ):
        try:
            yield LineProcess(process, what, log_path)
        finally:
            _stop(process, stop_seconds_max)


def _stop(process: "subprocess.Popen[str]", seconds_max: float) -> None:
    assert process.stdin is not None
    try:
        process.stdin.close()
        process.wait(seconds_max)
    except (OSError, subprocess.TimeoutExpired):
        process.kill()
        process.wait()
