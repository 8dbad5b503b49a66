"""LeaseReturns: leases that are done with, on their way back to the service.

    done with --> waits --> goes along with the session's next acquire or reserve
                        \\-> or, after RETURN_SECONDS, with a call of its own, many at once

A call for each would cost the service as much as the acquire did. Invariant: a lease is handed to
one call once; one whose call is lost ends at its own deadline. A lock guards the list; any thread.
"""

import contextlib
import threading
from collections.abc import Callable, Sequence

import grpc

__all__ = ["LeaseReturns"]

RETURN_SECONDS = 0.02
"""How long a lease waits for a call to go along with."""

RETURNED_AT_ONCE_MAX = 256


class LeaseReturns:
    """Of one session. `close` it at the end; what waits then ends with the session."""

    def __init__(self, send: Callable[[Sequence[str]], None]) -> None:
        """`send` gives leases back in a call of its own, without waiting for the answer."""
        self._send = send
        self._lock = threading.Lock()
        self._waiting: list[str] = []
        self._some = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def put(self, lease_id: str) -> None:
        """The caller reads under this lease no more."""
        with self._lock:
            self._waiting.append(lease_id)
            if self._thread is None and not self._closing.is_set():
                self._thread = threading.Thread(
                    target=self._run, name="cache-lease-returns", daemon=True
                )
                self._thread.start()
        if not self._some.is_set():
            self._some.set()

    def take(self) -> list[str]:
        """The oldest that wait, for a call that is about to be made."""
        with self._lock:
            taken = self._waiting[:RETURNED_AT_ONCE_MAX]
            del self._waiting[:RETURNED_AT_ONCE_MAX]
        return taken

    def close(self) -> None:
        """Ends the thread; does not wait for it."""
        self._closing.set()
        self._some.set()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._some.wait()
            self._closing.wait(RETURN_SECONDS)
            self._some.clear()  # before looking: what is put from here on wakes us again
            while not self._closing.is_set() and (ids := self.take()):
                with contextlib.suppress(grpc.RpcError, ValueError):  # the channel may be closed
                    self._send(ids)
