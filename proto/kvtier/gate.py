"""The gate of every service: one interceptor, default deny.

    connection -> principal -> certificate still valid? -> role in the method's row?
               -> request names only what is the caller's -> calls in flight under the limits?
               -> handler; where the row asks for it, an audit line first, and one for every no

A stream of requests counts for its caller from its beginning, for its session from its first
message, and must have one soon. Invariants: no handler runs for somebody whom its method's row does
not name, and what may stay open is bounded, for one session or caller too. Event loop only; the
state is the calls in flight (`calls.py`) and the principals seen.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

from kvtier.access import (
    CALLER,
    Access,
    CertificateExpiredError,
    FirstMessageLateError,
    RoleNotAllowedError,
    Rule,
    TooManyCallsError,
    UnauthenticatedError,
)
from kvtier.calls import Calls, Place, Places
from kvtier.errors import KvtierError
from kvtier.handlers import WrappingInterceptor
from kvtier.principals import EVERY_ROLE, Principal, Role, principal_of

__all__ = ["AccessInterceptor"]

PRINCIPALS_MAX = 1024
"""Certificates remembered, so that a call costs no parsing; the longest unused is forgotten."""

Context = Any  # grpc.aio.ServicerContext; its type parameters say nothing that is used here

LOCAL_OWNER = Principal("local", frozenset({Role.ENGINE, Role.GATEWAY, Role.OPERATOR}))
"""Whoever came through a socket that only this process's owner may open."""

DEVELOPER = Principal("development", EVERY_ROLE)
"""Whoever came over loopback in clear, which `security.development` allows."""

UNKNOWN = Principal("unknown", frozenset())
"""In the audit log: whoever did not say who calls."""


class _Principals:
    """Who is at the other end of a connection."""

    def __init__(self, development: bool, wall_clock: Callable[[], float]) -> None:
        self._development = development
        self._wall_clock = wall_clock
        self._known: OrderedDict[bytes, Principal] = OrderedDict()

    def of(self, context: Context) -> Principal:
        """Raises UnauthenticatedError."""
        if context.peer().startswith("unix:"):
            return LOCAL_OWNER
        certificates = context.auth_context().get("x509_pem_cert")
        if certificates:
            return self._of_certificate(bytes(certificates[0]))
        if self._development:
            return DEVELOPER
        raise UnauthenticatedError("the connection shows no certificate; connect with one")

    def _of_certificate(self, pem: bytes) -> Principal:
        principal = self._known.get(pem)
        if principal is None:
            try:
                principal = principal_of(pem)
            except ValueError:
                raise UnauthenticatedError(
                    "the certificate cannot be read; have another issued"
                ) from None
            if len(self._known) >= PRINCIPALS_MAX:
                self._known.popitem(last=False)
            self._known[pem] = principal
        self._known.move_to_end(pem)
        return principal

    def check_valid(self, principal: Principal) -> None:
        """Raises CertificateExpiredError."""
        if principal.not_after <= self._wall_clock():
            raise CertificateExpiredError("the certificate has expired; connect with a new one")


class AccessInterceptor(WrappingInterceptor):
    """Applies an `Access` to every call. REQUIRES: something outside maps KvtierErrors."""

    def __init__(self, access: Access, wall_clock: Callable[[], float]) -> None:
        super().__init__()
        self._access = access
        self._principals = _Principals(access.security.development, wall_clock)
        self.calls = Calls(access.limits)
        self._apart: dict[str, Places] = {}
        """By method, of those that stand apart from the limits."""

    def _unary(self, call: Callable[..., Awaitable[Any]], method: str) -> Any:
        async def guarded(request: Any, context: Context) -> Any:
            async with contextlib.AsyncExitStack() as stack:
                return await call(await self._admit(stack, request, context, method), context)

        async def guarded_plainly(request: Any, context: Context) -> Any:
            if hasattr(request, "__aiter__"):
                return await guarded(request, context)
            # The way of nearly every call, without what only the others need.
            principal = self._principals.of(context)
            self._let_in(principal, method)
            self._access.check(principal, method, request)
            name = _session(request) or principal.key
            self.calls.begin(name)
            try:
                return await call(request, context)
            finally:
                self.calls.end(name)

        rule = self._access.rule(method)
        return guarded_plainly if rule.counted and not rule.audited else guarded

    def _stream(self, call: Callable[..., AsyncGenerator[Any, None]], method: str) -> Any:
        async def guarded(request: Any, context: Context) -> AsyncIterator[Any]:
            async with contextlib.AsyncExitStack() as stack:
                request = await self._admit(stack, request, context, method)
                # A caller that goes away in the middle must end the handler now, not at some
                # later collection: that is what gives its leases back.
                async with contextlib.aclosing(call(request, context)) as responses:
                    async for response in responses:
                        yield response

        return guarded

    async def _admit(
        self, stack: contextlib.AsyncExitStack, request: Any, context: Context, method: str
    ) -> Any:
        """The request to go on with, whose messages are checked. `stack` ends with the call."""
        rule, audit = self._access.rule(method), self._access.audit
        streams = hasattr(request, "__aiter__")
        assert not (streams and rule.audited), "the audit log has a line for a whole request"
        principal = UNKNOWN
        try:
            principal = self._principals.of(context)
            self._let_in(principal, method)
            if not streams:
                self._access.check(principal, method, request)
            place = self._place(stack, principal, method, "" if streams else _session(request))
        except KvtierError as error:
            if rule.audited and audit is not None:
                await audit.refused(principal, method, error.reason)
            raise
        if streams:
            return self._checked(place, principal, method, request)
        if rule.audited and audit is not None:
            await stack.enter_async_context(audit.call(principal, method, request))
        return request

    def _let_in(self, principal: Principal, method: str) -> None:
        """From here on `caller()` says who. Raises CertificateExpiredError, RoleNotAllowedError."""
        self._principals.check_valid(principal)
        rule = self._access.rule(method)
        if not principal.may(rule.roles):
            raise _refusal(principal, method, rule)
        CALLER.set(principal)

    def _place(
        self, stack: contextlib.AsyncExitStack, principal: Principal, method: str, session: str
    ) -> Place | None:
        """A place until `stack` ends; None: the call stands apart. Raises TooManyCallsError."""
        rule = self._access.rule(method)
        if rule.counted:
            place = Place(self.calls, session or principal.key)
            stack.callback(place.end)
            return place
        if rule.per_caller_max is not None:
            apart = self._apart.get(method)
            if apart is None:
                bound = "calls_per_caller_max", rule.per_caller_max
                apart = self._apart[method] = Places(*bound, "end one of them")
            try:
                apart.begin(principal.key)
            except TooManyCallsError as error:
                self.calls.refused(error)
                raise
            stack.callback(apart.end, principal.key)
        return None

    async def _checked(
        self, place: Place | None, principal: Principal, method: str, requests: Any
    ) -> AsyncIterator[Any]:
        messages = aiter(requests)
        try:
            request = await _soon(anext(messages), self._access.limits.first_message_seconds)
        except StopAsyncIteration:
            return
        self._access.check(principal, method, request)
        if place is not None:
            place.move(_session(request) or principal.key)
        yield request
        async for request in messages:
            self._access.check(principal, method, request)
            yield request


def _refusal(principal: Principal, method: str, rule: Rule) -> RoleNotAllowedError:
    return RoleNotAllowedError(
        f"{method} is for {_names(rule.roles) or 'nobody'}; this certificate says"
        f" {_names(principal.roles) or 'no role of kvtier'}",
        method=method,
        allowed=_names(rule.roles),
        roles=_names(principal.roles),
    )


async def _soon(message: Awaitable[Any], seconds: float) -> Any:
    """The first message of a stream. Raises FirstMessageLateError, StopAsyncIteration."""
    try:
        async with asyncio.timeout(seconds):
            return await message
    except TimeoutError:
        raise FirstMessageLateError(
            f"the stream began without a message, and none came in {seconds} seconds; open it when"
            " there is something to send"
        ) from None


def _session(request: Any) -> str:
    return str(getattr(request, "session_id", ""))


def _names(roles: frozenset[Role]) -> str:
    return ", ".join(sorted(roles))
