"""What happened to the cache client, as counts and as few log lines.

A broken cache fails thousands of calls a minute; the counts have them all, the log has one line for
each kind of trouble every `LOG_SECONDS`, with how many it stands for. A lock guards the state; any
thread.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping

__all__ = ["CacheCounts"]

log = logging.getLogger(__name__)

LOG_SECONDS = 10.0


class CacheCounts:
    """Totals by name since construction. Names are fixed words, never ids."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._totals: Counter[str] = Counter()
        self._logged: dict[str, tuple[float, int]] = {}
        """Kind of trouble -> when it was last logged, and its total then."""

    def add(self, name: str, amount: int = 1) -> None:
        with self._lock:
            self._totals[name] += amount

    def trouble(self, name: str, message: str, **fields: object) -> None:
        """Counts `name` and says `message`, unless the same kind was logged a moment ago."""
        with self._lock:
            self._totals[name] += 1
            now, total = self._clock(), self._totals[name]
            logged_time, logged_total = self._logged.get(name, (now - LOG_SECONDS, 0))
            if now - logged_time < LOG_SECONDS:
                return
            self._logged[name] = (now, total)
        log.warning(message, extra={"kind": name, "count": total - logged_total, **fields})

    def totals(self) -> Mapping[str, int]:
        """A copy."""
        with self._lock:
            return dict(self._totals)
