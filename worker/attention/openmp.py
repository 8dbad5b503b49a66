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

__all__ = ["Parallel", "end_team", "parallel"]

Parallel = Callable[[int, int, int], None]
"""Of a function's address, of what it gets, and how many threads call it at once; returns when all
have. Without the interpreter lock."""

PAUSE_SOFT = 1
"""OpenMP's `omp_pause_soft`: what was set stays set."""


@functools.cache
def parallel() -> Parallel | None:
    """None where torch's runtime is of another kind."""
    found = _function("GOMP_parallel")
    if found is None:
        return None
    found.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    found.restype = None

    def call(function: int, argument: int, threads: int) -> None:
        found(function, argument, threads, 0)

    return call


def end_team() -> bool:
    """Ends the team that the calling thread has of its calls of torch; its next call makes another.
    False where it cannot be done.

    Threads of a team wait for the next call spinning, but only while no more threads are in teams
    than there are processors: else they sleep, and each call has to wake them.
    """
    found = _function("omp_pause_resource_all") if parallel() is not None else None
    if found is None:
        return False
    found.argtypes, found.restype = [ctypes.c_int], ctypes.c_int
    return bool(found(PAUSE_SOFT) == 0)


def _function(name: str) -> Any:
    """Looked up in what torch's library is linked to, as its own calls are; None: not there."""
    try:
        return getattr(ctypes.CDLL(str(_library())), name)
    except (OSError, AttributeError):
        return None


def _library() -> Path:
    directory = Path(torch.__file__).parent / "lib"
    found = sorted(directory.glob("libtorch_cpu.*"))
    if not found:
        raise OSError(f"no libtorch_cpu in {directory}")
    return found[0]
