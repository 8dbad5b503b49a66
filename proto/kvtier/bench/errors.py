"""Errors of benchmarks.

KvtierError
└── BenchError
"""

from kvtier.errors import KvtierError

__all__ = ["BenchError"]


class BenchError(KvtierError):
    """Something could not be measured: what was to be measured failed, or gave wrong bytes."""

    reason = "BENCH_FAILED"
