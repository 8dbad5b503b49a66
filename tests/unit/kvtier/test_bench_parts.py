"""What benchmarks share: figures, marks, the clock of another process."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from kvtier.bench.figures import byte_sizes, plain
from kvtier.bench.service import cpu_seconds
from kvtier.bench.tables import at_least, at_most, number, size


def test_another_process_has_its_own_clock() -> None:
    before, own = time.process_time(), cpu_seconds(os.getpid())
    assert before <= own
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert cpu_seconds(child.pid) >= 0.0
        gone = child.pid
    with pytest.raises(OSError):
        cpu_seconds(gone)


@dataclass(frozen=True)
class Run:
    directory: Path
    sizes: tuple[int, ...] = (1, 2)
    peers: Path | None = None


def test_settings_are_told_as_plain_data() -> None:
    told = plain(Run(Path("/tmp/x")))
    assert told == {"directory": "/tmp/x", "sizes": (1, 2), "peers": None}
    assert json.loads(json.dumps(told))["sizes"] == [1, 2]


def test_sizes_are_read_and_written_alike() -> None:
    assert byte_sizes("256KiB, 2MiB") == (256 << 10, 2 << 20)
    assert [size(each) for each in byte_sizes("256KiB,2MiB")] == ["256 KiB", "2 MiB"]
    with pytest.raises(ValueError):
        byte_sizes("much")


def test_what_misses_a_limit_is_marked_and_what_has_none_is_not() -> None:
    assert at_least(0.8, 0.9) == "[red]0.80![/]"
    assert at_least(0.9, 0.9) == "[green]0.90[/]"
    assert (at_least(0.9, None), at_least(None, 0.9)) == ("0.90", "-")
    assert at_most(801.0, 800.0, 0) == "[red]801![/]"
    assert at_most(801.0, None, 0) == "801"
    assert number(1234567.0, 0) == "1,234,567"
