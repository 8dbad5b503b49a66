"""promtool, which Debian's package `prometheus` has; without it its tests say so and skip."""

import shutil
import subprocess
from collections.abc import Callable

import pytest

__all__ = ["needed_promtool"]

SECONDS_MAX = 120.0


def needed_promtool() -> Callable[..., str]:
    """Runs it with the words given; what it printed. It raises CalledProcessError."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("RULES ARE NOT CHECKED BY PROMETHEUS: apt-get install prometheus")

    def promtool(*words: str) -> str:
        done = subprocess.run(
            (program, *words), capture_output=True, text=True, timeout=SECONDS_MAX, check=False
        )
        if done.returncode:
            error = subprocess.CalledProcessError(done.returncode, words, done.stdout, done.stderr)
            error.add_note(f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
            raise error
        return done.stdout

    return promtool
