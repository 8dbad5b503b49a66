"""The threads that torch computes with, for code of our own.

A pool beside torch's would fight with it: its threads wait for work without sleeping. So the very
runtime is asked that torch is linked to, and a caller gets the team that its own calls of torch
have. Any thread.
"""

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

__all__ = ["parallel"]

Parallel = Callable[[int, int, int], None]
"""Of a function's address, of what it gets, and how many threads call it at once; returns when all
have. Without the interpreter lock."""


@functools.cache
def parallel() -> Parallel | None:
    """None where torch's runtime is of another kind."""
    try:
        # Looked up in what the library is linked to, as its own calls are.
        library = ctypes.CDLL(str(_library()))
        found: Any = library.GOMP_parallel
    except (OSError, AttributeError):
        return None
    found.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    found.restype = None

    def call(function: int, argument: int, threads: int) -> None:
        found(function, argument, threads, 0)

    return call


def _library() -> Path:
    directory = Path(torch.__file__).parent / "lib"
    found = sorted(directory.glob("libtorch_cpu.*"))
    if not found:
        raise OSError(f"no libtorch_cpu in {directory}")
    return found[0]
