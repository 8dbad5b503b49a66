"""What a service demands of its callers: a table of method -> roles, a check of requests, limits.

`gate.py` applies it. Invariant: a method without a row is nobody's. Pure, but for the caller of the
running handler, which the gate sets and nobody else.
"""

import contextlib
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from kvtier.errors import KvtierError
from kvtier.principals import EVERY_ROLE, Principal, Role
from kvtier.tls import SecuritySettings

__all__ = [
    "CALLER",
    "REFLECTIONS_PER_CALLER_MAX",
    "WATCHES_PER_CALLER_MAX",
    "Access",
    "AuditSink",
    "CallLimits",
    "CertificateExpiredError",
    "FirstMessageLateError",
    "RoleNotAllowedError",
    "Rule",
    "ScopeNotAllowedError",
    "TooManyCallsError",
    "UnauthenticatedError",
    "audit_note",
    "caller",
    "own_tenant_only",
    "rules",
]


class UnauthenticatedError(KvtierError):
    """The connection does not say who calls."""

    reason = "UNAUTHENTICATED"


class CertificateExpiredError(UnauthenticatedError):
    """It did, until its certificate ended."""

    reason = "CERTIFICATE_EXPIRED"


class RoleNotAllowedError(KvtierError):
    """The caller is known, and this call is not for its roles."""

    reason = "ROLE_NOT_ALLOWED"


class ScopeNotAllowedError(KvtierError):
    """The call is for the caller's role, and names what belongs to another tenant."""

    reason = "SCOPE_NOT_ALLOWED"


class TooManyCallsError(KvtierError):
    """More calls at a time than the service, or one session, may have."""

    reason = "TOO_MANY_CALLS"


class FirstMessageLateError(KvtierError):
    """A stream that began without a message, for longer than a place may be held so."""

    reason = "FIRST_MESSAGE_LATE"


@dataclass(frozen=True, slots=True)
class Rule:
    """A method's row."""

    roles: frozenset[Role]
    audited: bool = False
    """The call is written to the audit log before it starts, and refused when that fails."""
    counted: bool = True
    """False: it stands apart from the service's limits, which neither count nor refuse it."""
    per_caller_max: int | None = None
    """Of a call that stands apart, how many at a time one caller may have. None where the answer
    does not wait for anything."""


def rules(service: str, **rows: Rule) -> dict[str, Rule]:
    """Rows by full method name, from rows by the method's own."""
    return {f"/{service}/{method}": rule for method, rule in rows.items()}


WATCHES_PER_CALLER_MAX = 1024
"""Room for every channel of many clients with one certificate: gRPC's health checking holds one."""

REFLECTIONS_PER_CALLER_MAX = 16
"""People with a tool."""

_COMMON: Mapping[str, Rule] = {
    # A full service is alive, and must be able to say so.
    **rules(
        "grpc.health.v1.Health",
        Check=Rule(EVERY_ROLE, counted=False),
        List=Rule(EVERY_ROLE, counted=False),
        Watch=Rule(EVERY_ROLE, counted=False, per_caller_max=WATCHES_PER_CALLER_MAX),
    ),
    **rules(
        "grpc.reflection.v1alpha.ServerReflection",
        ServerReflectionInfo=Rule(
            EVERY_ROLE, counted=False, per_caller_max=REFLECTIONS_PER_CALLER_MAX
        ),
    ),
}

NOBODY = Rule(frozenset())


class AuditSink(Protocol):
    """Where audited calls are written."""

    def call(
        self, principal: Principal, method: str, request: Any
    ) -> contextlib.AbstractAsyncContextManager[None]:
        """Writes the call's beginning on entry and its outcome on exit, each durable before it
        returns. Raises a KvtierError when that cannot be done."""

    async def refused(self, principal: Principal, method: str, reason: str) -> None:
        """Notes an audited call that was refused; never raises."""


RequestCheck = Callable[[Principal, str, Any], None]
"""Raises when a request (of the caller, to the method) names what is not the caller's."""


@dataclass(frozen=True, slots=True)
class CallLimits:
    """Calls at a time: of the service, and of one session (of one caller, where none is named)."""

    calls_max: int = 4096
    calls_per_session_max: int = 1024
    first_message_seconds: float = 10.0
    """How long a stream of requests may wait for its first."""


def _anything(_caller: Principal, _method: str, _request: Any) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Access:
    """What a service demands of its callers."""

    rules: Mapping[str, Rule]
    security: SecuritySettings
    check: RequestCheck = _anything
    audit: AuditSink | None = None
    limits: CallLimits = field(default_factory=CallLimits)

    def __post_init__(self) -> None:
        assert self.audit is not None or not any(rule.audited for rule in self.rules.values())

    def rule(self, method: str) -> Rule:
        """The method's row; nobody's when there is none."""
        return self.rules.get(method) or _COMMON.get(method, NOBODY)


CALLER: ContextVar[Principal] = ContextVar("caller")


def caller() -> Principal:
    """Who makes the call that this handler serves. REQUIRES: inside a handler."""
    return CALLER.get()


NOTES: ContextVar[list[str]] = ContextVar("notes")
"""What is to be said of the running call beside its outcome; set by the audit log."""


def audit_note(text: str) -> None:
    """Adds to the last line that the audit log has of the running call; nothing, where that is not
    audited."""
    notes = NOTES.get(None)
    if notes is not None:
        notes.append(text)


def own_tenant_only(table: Mapping[str, Rule]) -> RequestCheck:
    """A check for services whose requests name a `tenant_id`, and perhaps a project and user: who
    may call for its role of tenant alone stays within its scope. Raises ScopeNotAllowedError."""

    def check(principal: Principal, method: str, request: Any) -> None:
        rule = table.get(method)
        if not hasattr(request, "tenant_id") or rule is None:
            return
        if principal.roles & rule.roles != {Role.TENANT}:
            return
        path = tuple(getattr(request, name, "") for name in _PATH_FIELDS)
        if not any(path[: len(scope)] == scope for scope in principal.scopes):
            raise ScopeNotAllowedError(
                "this certificate speaks for another tenant, project or user; name its own"
                " tenant_id, project_id and user_id"
            )

    return check


_PATH_FIELDS = ("tenant_id", "project_id", "user_id")
