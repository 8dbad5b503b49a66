"""A cache service process to be measured, and the CPU time of a process that is not ours.

Any thread; the process is its starter's.
"""

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from kvtier.bench.errors import BenchError
from kvtier.cli.processes import ServiceProcess, start_service

__all__ = ["cache_service_process", "cpu_seconds"]

_CPUCLOCK_SCHED = 2


@contextmanager
def cache_service_process(
    settings: Mapping[str, object], ready_seconds_max: float = 600.0
) -> Iterator[ServiceProcess]:
    """A service with `settings` beside the defaults; stopped, and its log gone, at the end.

    Raises ServiceStartError.
    """
    # A short path: Unix sockets lie in it.
    with tempfile.TemporaryDirectory(prefix="kvb-") as name:
        defaults = {
            "listen": "127.0.0.1:0",
            "data_directory": f"{name}/data",
            "socket_path": f"{name}/arena.sock",
            "log.level": "WARNING",
        }
        service = start_service(
            "cache_service", defaults | dict(settings), Path(name) / "log", ready_seconds_max
        )
        try:
            yield service
            if not service.running:
                raise BenchError(f"the cache service ended: {service.last_words()}")
        finally:
            service.stop()


def cpu_seconds(pid: int) -> float:
    """User and system time of a process with all its threads. Linux; raises OSError."""
    # As clock_getcpuclockid(3) makes it, which Python has for threads only.
    return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)
