"""The link to a cache service that may be absent, slow, restarted or out of its mind.

    call -> breaker closed? -> session open? (else the caller opens it) -> the caller's RPCs
    keeper thread: opens a session ahead of the first call, touches the arena's pages and registers
                   them with the device, renews the session while the breaker is closed, probes
                   while it is open

Invariant: a call that finds the breaker open costs nothing, because only the keeper probes; every
other call is bounded by its own deadline. A session that failed is retired, never used again. What
the keeper finds refused on its own rounds opens no breaker: a refusal costs a caller nothing, and
the service may be back, restarted, before anybody calls.

`_session` is written under `_opening`; the keeper is the only thread started here, from the
constructor until `close`.
"""

import contextlib
import logging
import threading
import weakref
from collections.abc import Callable, Iterator

import grpc

from kvtier.breaker import Breaker
from kvtier.errors import read_error
from worker.bulk_lane import LaneStoppedError
from worker.cache_counts import CacheCounts
from worker.cache_session import CacheSession, SessionTerms, open_session
from worker.registered_memory import RegisteredMemory
from worker.transfer import ArenaMap, NonsenseError

__all__ = ["CacheLink", "LinkDownError"]

log = logging.getLogger(__name__)

OPEN_SECONDS_MAX = 2.0
RENEW_SECONDS_MAX = 2.0
IDLE_SECONDS = 1.0
GOODBYE_SECONDS_MAX = 1.0

EVIDENCE_SECONDS = 0.2
"""A timeout after less than this says more about the caller's hurry than about the service."""

PEER_REASONS = (
    "",
    "INTERNAL",
    "SHUTTING_DOWN",
    "UNAUTHENTICATED",
    "CERTIFICATE_EXPIRED",
    "ROLE_NOT_ALLOWED",
)
"""Reasons that say something about the service or this client's standing there, not about the call:
the next call would end the same way."""

PEER_FAILURES = (grpc.RpcError, NonsenseError, LaneStoppedError, OSError)
"""What a call raises when the other side is to blame."""


class LinkDownError(Exception):
    """The breaker is open, the time is up before a session was there, or the link is closed."""


class CacheLink:
    """Opens sessions, watches them, keeps the breaker. Thread-safe."""

    def __init__(
        self,
        terms: SessionTerms,
        clock: Callable[[], float],
        breaker: Breaker,
        counts: CacheCounts,
        registered: RegisteredMemory | None = None,
    ) -> None:
        """`registered`: where arenas are registered."""
        self._terms = terms
        self._clock = clock
        self._breaker = breaker
        self._counts = counts
        self._registered = registered
        self._registered_arena: weakref.ref[ArenaMap] | None = None
        self._opening = threading.Lock()
        self._session: CacheSession | None = None
        self._last: CacheSession | None = None
        """The latest session, retired or not: its arena may still be the service's."""
        self._closed = False
        self._wake = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="cache-keeper", daemon=True)
        self._wake.set()
        self._keeper.start()

    def connected(self) -> bool:
        """A session is open and the service answered last time it was asked."""
        return self._session is not None and self._breaker.admits()

    @contextlib.contextmanager
    def session(self, deadline: float) -> Iterator[CacheSession]:
        """A session to use until the body ends. Raises LinkDownError, or what opening raises."""
        if self._closed or not self._breaker.admits():
            raise LinkDownError("the breaker is open")
        session = self._current(deadline)
        while not session.enter():
            self.drop(session)
            session = self._current(deadline)
        try:
            yield session
        finally:
            session.leave()

    def report(self, error: BaseException, session: CacheSession | None, waited: float) -> bool:
        """Judges a failed call; True when a fresh session may do better right away.

        `waited` is how long the call took, in seconds.
        """
        reason, code = self._note(error)
        if reason == "SESSION_UNKNOWN":
            self.drop(session)
            return True
        if reason not in PEER_REASONS:
            return False  # a typed refusal: the service is well, this call was not
        hurried = code is grpc.StatusCode.DEADLINE_EXCEEDED and waited < EVIDENCE_SECONDS
        if not hurried:
            self.drop(session)
            self._breaker.failed()
            self._wake.set()
        return code is grpc.StatusCode.UNAVAILABLE and session is not None

    def succeeded(self) -> None:
        self._breaker.succeeded()

    def drop(self, session: CacheSession | None) -> None:
        """Retires `session` if it is still the current one; the next call opens another."""
        if session is None:
            return
        with self._opening:
            if self._session is session:
                self._session = None
        session.retire()

    def close(self) -> None:
        """Ends the session and the keeper. Idempotent; bounded by a few seconds."""
        self._closed = True
        self._wake.set()
        self._keeper.join(OPEN_SECONDS_MAX + RENEW_SECONDS_MAX)
        with self._opening:
            session, self._session, self._last = self._session, None, None
        if session is not None:
            if self._breaker.admits():
                session.say_goodbye(GOODBYE_SECONDS_MAX)
            session.retire()

    def _current(self, deadline: float) -> CacheSession:
        session = self._session
        if session is not None:
            return session
        if not self._opening.acquire(timeout=max(0.0, deadline - self._clock())):
            raise LinkDownError("another call is still opening a session")
        try:
            if self._closed:
                raise LinkDownError("the link is closed")
            if self._session is None:
                self._open(deadline)
            assert self._session is not None
            return self._session
        finally:
            self._opening.release()

    def _open(self, deadline: float) -> None:
        """REQUIRES: `_opening` is held."""
        seconds = min(OPEN_SECONDS_MAX, deadline - self._clock())
        if seconds <= 0 or not self._breaker.admits():
            raise LinkDownError("no time left to open a session, or the breaker opened meanwhile")
        self._last = self._session = open_session(self._terms, seconds, self._last)
        self._opened(self._session)
        self._wake.set()

    def _keep(self) -> None:
        touched: CacheSession | None = None
        while not self._closed:
            self._wake.wait(self._pause())
            self._wake.clear()
            if self._closed:
                return
            try:
                self._ask()
            except Exception as error:
                # Whatever it is: without this thread an open breaker would stay open for ever.
                self._note(error)
                self._breaker.failed()
            session = self._session
            if session is not None and session is not touched:
                touched = session
                self._prefault(session)

    def _ask(self) -> None:
        if self._breaker.begin_probe():
            self._probe()
        elif self._breaker.admits():
            self._open_or_renew()

    def _pause(self) -> float:
        to_probe = self._breaker.seconds_to_probe()
        if to_probe is not None:
            return max(0.01, to_probe)
        session = self._session
        return IDLE_SECONDS if session is None else session.renew_seconds

    def _open_or_renew(self) -> None:
        session = self._session
        if session is None:
            try:
                self._current(self._clock() + OPEN_SECONDS_MAX)
            except LinkDownError:
                pass
            except PEER_FAILURES as error:
                self._keeper_failed(error, None)
            return
        if not session.enter():
            return
        try:
            session.renew(RENEW_SECONDS_MAX)
        except PEER_FAILURES as error:
            self._keeper_failed(error, session)
        else:
            self._breaker.succeeded()
        finally:
            session.leave()

    def _keeper_failed(self, error: BaseException, session: CacheSession | None) -> None:
        """As `report`, for what no caller asked for: it is tried again at the keeper's own pace."""
        reason, code = self._note(error)
        if reason == "SESSION_UNKNOWN" or reason in PEER_REASONS:
            self.drop(session)
        if reason in PEER_REASONS and code is not grpc.StatusCode.UNAVAILABLE:
            self._breaker.failed()

    def _note(self, error: BaseException) -> tuple[str, grpc.StatusCode]:
        """Counts and logs a failure; its reason and code on the wire."""
        reason, code, problem = "", grpc.StatusCode.UNKNOWN, str(error)[:200]
        if isinstance(error, grpc.RpcError):
            wire = read_error(error)
            reason, code, problem = wire.reason, wire.code, wire.message
        elif isinstance(error, LaneStoppedError):
            reason = error.reason
        elif isinstance(error, TimeoutError):
            code = grpc.StatusCode.DEADLINE_EXCEEDED
        self._counts.trouble(
            "cache_failures",
            "the cache service failed a call",
            reason=reason or code.name,
            problem=problem,
        )
        return reason, code

    def _opened(self, session: CacheSession) -> None:
        self._counts.add("sessions_opened")
        for transport, why in session.passed_over.items():
            self._counts.trouble(
                f"sessions_not_over_{transport}",
                "the cache service is reached by a slower way",
                transport=transport,
                problem=why,
            )

    def _probe(self) -> None:
        try:
            session: CacheSession | None = open_session(self._terms, OPEN_SECONDS_MAX, self._last)
        except PEER_FAILURES as error:
            self._counts.trouble(
                "probe_failures", "the cache service is still away", problem=_short(error)
            )
            self._breaker.failed()
            return
        with self._opening:
            if self._closed:
                previous, session = session, None
            else:
                previous, self._session = self._session, session
                self._last = session
        if previous is not None:
            previous.retire()
        if session is None:
            return  # the link was closed meanwhile
        self._opened(session)
        self._breaker.succeeded()

    def _prefault(self, session: CacheSession) -> None:
        if session.arena is not None and session.enter():
            try:
                session.arena.prefault(lambda: not (self._closed or session.retired))
                self._register_arena(session.arena, lambda: not (self._closed or session.retired))
            except Exception as error:
                # The first copies pay for it instead.
                self._counts.trouble(
                    "arenas_not_touched",
                    "the arena could not be touched ahead of its use",
                    problem=_short(error),
                )
            finally:
                session.leave()

    def _register_arena(self, arena: ArenaMap, wanted: Callable[[], bool]) -> None:
        """Once for each arena, which sessions share."""
        known = self._registered_arena and self._registered_arena()
        if self._registered is None or known is arena:
            return
        problem = self._registered.add(arena, wanted)
        if not wanted():
            return
        self._registered_arena = weakref.ref(arena)
        if problem:
            self._counts.trouble(
                "arenas_not_registered",
                "the arena is not registered with the device, or not all of it; what is not goes "
                "through memory that is",
                problem=problem,
            )
        else:
            self._counts.add("arenas_registered")
        start, end = arena.addresses
        log.info(
            "the arena is registered with the device",
            extra={
                "registered_bytes": self._registered.registered_bytes,
                "arena_bytes": end - start,
            },
        )


def _short(error: BaseException) -> str:
    if isinstance(error, grpc.RpcError):
        return read_error(error).message[:200]
    return str(error)[:200]
