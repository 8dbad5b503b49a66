"""The gate of every service: one interceptor, default deny.

    connection -> principal -> certificate still valid? -> role in the method's row?
               -> calls in flight under the limits? -> request names only what is the caller's
               -> audit line, where the row asks for one -> handler

Invariant: no handler runs for somebody whom its method's row does not name. Event loop only; the
state is the calls in flight and the principals seen.
"""

import contextlib
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

from kvtier.access import (
    CALLER,
    Access,
    CallLimits,
    CertificateExpiredError,
    RoleNotAllowedError,
    Rule,
    TooManyCallsError,
    UnauthenticatedError,
)
from kvtier.handlers import WrappingInterceptor
from kvtier.principals import EVERY_ROLE, Principal, Role, principal_of

__all__ = ["AccessInterceptor"]

PRINCIPALS_MAX = 1024
"""Certificates remembered, so that a call costs no parsing; the longest unused is forgotten."""

Context = Any  # grpc.aio.ServicerContext; its type parameters say nothing that is used here

LOCAL_OWNER = Principal("local", frozenset({Role.ENGINE, Role.OPERATOR}))
"""Whoever came through a socket that only this process's owner may open."""

DEVELOPER = Principal("development", EVERY_ROLE)
"""Whoever came over loopback in clear, which `security.development` allows."""


class _Principals:
    """Who is at the other end of a connection."""

    def __init__(self, development: bool, wall_clock: Callable[[], float]) -> None:
        self._development = development
        self._wall_clock = wall_clock
        self._known: OrderedDict[bytes, Principal] = OrderedDict()

    def of(self, context: Context) -> Principal:
        """Raises UnauthenticatedError, CertificateExpiredError."""
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
        if principal.not_after <= self._wall_clock():
            raise CertificateExpiredError("the certificate has expired; connect with a new one")
        return principal


class _Calls:
    """Calls in flight, all together and by session or caller."""

    def __init__(self, limits: CallLimits) -> None:
        self._limits = limits
        self._total = 0
        self._of: dict[str, int] = {}

    def begin(self) -> None:
        """One more; `end` follows. Raises TooManyCallsError."""
        if self._total >= self._limits.calls_max:
            raise TooManyCallsError(
                f"{self._limits.calls_max} calls are being served; try again, or raise the limit",
                calls_max=self._limits.calls_max,
            )
        self._total += 1

    def end(self) -> None:
        self._total -= 1

    def begin_of(self, name: str) -> None:
        """One more of a session or caller; `end_of` follows. Raises TooManyCallsError."""
        count = self._of.get(name, 0)
        if count >= self._limits.calls_per_session_max:
            raise TooManyCallsError(
                f"{count} calls of this session are being served; wait for one to end, or raise"
                " the limit",
                calls_per_session_max=self._limits.calls_per_session_max,
            )
        self._of[name] = count + 1

    def end_of(self, name: str) -> None:
        self._of[name] -= 1
        if not self._of[name]:
            del self._of[name]


class AccessInterceptor(WrappingInterceptor):
    """Applies an `Access` to every call. REQUIRES: something outside maps KvtierErrors."""

    def __init__(self, access: Access, wall_clock: Callable[[], float]) -> None:
        super().__init__()
        self._access = access
        self._principals = _Principals(access.security.development, wall_clock)
        self._calls = _Calls(access.limits)

    def _unary(self, call: Callable[..., Awaitable[Any]], method: str) -> Any:
        async def guarded(request: Any, context: Context) -> Any:
            async with contextlib.AsyncExitStack() as stack:
                return await call(await self._admit(stack, request, context, method), context)

        async def guarded_plainly(request: Any, context: Context) -> Any:
            if hasattr(request, "__aiter__"):
                return await guarded(request, context)
            # The way of nearly every call, without what only the others need.
            principal = await self._principal(context, method)
            self._calls.begin()
            try:
                self._access.check(principal, method, request)
                name = _session(request) or principal.key
                self._calls.begin_of(name)
                try:
                    return await call(request, context)
                finally:
                    self._calls.end_of(name)
            finally:
                self._calls.end()

        return guarded if self._access.rule(method).audited else guarded_plainly

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
        principal = await self._principal(context, method)
        self._calls.begin()
        stack.callback(self._calls.end)
        if hasattr(request, "__aiter__"):
            return self._checked(stack, principal, method, request)
        self._access.check(principal, method, request)
        self._count(stack, principal, request)
        if self._access.rule(method).audited and self._access.audit is not None:
            await stack.enter_async_context(self._access.audit.call(principal, method, request))
        return request

    async def _principal(self, context: Context, method: str) -> Principal:
        """Who calls, and may. From here on `caller()` says so."""
        rule = self._access.rule(method)
        principal = self._principals.of(context)
        if not principal.may(rule.roles):
            raise await self._refusal(principal, method, rule)
        CALLER.set(principal)
        return principal

    def _count(self, stack: contextlib.AsyncExitStack, principal: Principal, request: Any) -> None:
        name = _session(request) or principal.key
        self._calls.begin_of(name)
        stack.callback(self._calls.end_of, name)

    async def _checked(
        self, stack: contextlib.AsyncExitStack, principal: Principal, method: str, requests: Any
    ) -> AsyncIterator[Any]:
        counted = False
        async for request in requests:
            self._access.check(principal, method, request)
            if not counted:
                counted = True
                self._count(stack, principal, request)
            yield request

    async def _refusal(self, principal: Principal, method: str, rule: Rule) -> RoleNotAllowedError:
        error = RoleNotAllowedError(
            f"{method} is for {_names(rule.roles) or 'nobody'}; this certificate says"
            f" {_names(principal.roles) or 'no role of kvtier'}",
            method=method,
            allowed=_names(rule.roles),
            roles=_names(principal.roles),
        )
        if rule.audited and self._access.audit is not None:
            await self._access.audit.refused(principal, method, error.reason)
        return error


def _session(request: Any) -> str:
    return str(getattr(request, "session_id", ""))


def _names(roles: frozenset[Role]) -> str:
    return ", ".join(sorted(roles))
