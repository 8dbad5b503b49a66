"""What the guided fuzzers share: their flags, and memory that may not grow.

A program runs until libFuzzer's flags say that it is enough (`-max_total_time=60`), and ends with
an error at the first input that raises; libFuzzer prints it, and `program FILE` runs it again.
"""

import ctypes
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path

import atheris

__all__ = ["fuzz"]

INPUT_BYTES_MAX = 3000
WARM_UP_COUNT = 400
LOOK_EVERY = 100
GROWTH_BYTES_MAX = 96 << 20
"""More than the corpus takes that libFuzzer keeps."""


def fuzz(one_input: Callable[[bytes], None]) -> None:
    """Never returns."""
    count, first = 0, 0
    libc = ctypes.CDLL(None)

    def counted(data: bytes) -> None:
        nonlocal count, first
        one_input(data)
        count += 1
        if count % LOOK_EVERY == 0:
            gc.collect()
            # What is free and not given back to the system comes and goes by a hundred MiB.
            libc.malloc_trim(0)
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf(
                "SC_PAGE_SIZE"
            )
            if count <= WARM_UP_COUNT:
                first = max(first, resident)
            assert resident <= first + GROWTH_BYTES_MAX, f"{resident - first} bytes more"

    flags = [f"-max_len={INPUT_BYTES_MAX}", "-len_control=0"]
    atheris.Setup([sys.argv[0], *flags, *sys.argv[1:]], counted)
    atheris.Fuzz()
