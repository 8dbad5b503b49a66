"""Fuzzers guided by coverage, for some seconds each; `python -m tests.guided.calls` runs for ever.

They are libFuzzer under Python (atheris): inputs that reach new branches are kept and varied.
"""

import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("atheris", reason="atheris has no build for this machine: no guided fuzzing")

ROOT = Path(__file__).parents[2]
GROWTH_MB_MAX = 2048


def ran(name: str, seconds: int, folder: Path) -> subprocess.CompletedProcess[str]:
    """What libFuzzer says is in `stderr`, what was raised in `stdout`, its input in `folder`."""
    # Linux counts the peak of whoever started a process as the process's own; this one ran models.
    mine_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    flags = [f"-max_total_time={seconds}", f"-artifact_prefix={folder}/", "-timeout=30"]
    flags.append(f"-rss_limit_mb={mine_mb + GROWTH_MB_MAX}")
    command = [sys.executable, "-m", f"tests.guided.{name}", *flags]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=seconds + 120, check=False
    )


@pytest.mark.timeout(200)
@pytest.mark.parametrize("name", ["calls", "bulk", "arena"])
def test_no_input_breaks_it(name: str, tmp_path: Path) -> None:
    done = ran(name, 10, tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    count, coverage = re.findall(r"^#(\d+)\s+DONE\s+cov: (\d+)", done.stderr, re.M)[0]
    first = re.findall(r"INITED cov: (\d+)", done.stderr)[0]
    assert int(count) > 50
    assert int(coverage) > int(first), "no input led anywhere new: nothing was guided"


@pytest.mark.timeout(200)
def test_a_fault_that_needs_guidance_is_found(tmp_path: Path) -> None:
    done = ran("canary", 60, tmp_path)
    assert done.returncode != 0
    assert "found" in done.stdout
