"""What a front says of a request beside who asks: for the usage event, and for nothing else.

Invariant: a key and a class of service decide what somebody pays, so only whoever lets callers in
may say them. Pure, any thread.
"""

from dataclasses import dataclass
from typing import Any

from kvtier.access import RequestCheck, RoleNotAllowedError, own_tenant_only
from kvtier.principals import Principal, Role
from worker.errors import InvalidLimitError
from worker.roles import RULES

__all__ = ["Attribution", "check_attribution", "request_check"]

CHARACTERS_MAX = 128
"""Of each; billing would refuse the event of a request that has more than it takes."""

FRONTS = frozenset({Role.GATEWAY, Role.OPERATOR})


@dataclass(frozen=True, slots=True)
class Attribution:
    """Empty where nobody says."""

    session_id: str = ""
    """The caller's own name for requests that belong together."""
    key_id: str = ""
    """Which of the caller's API keys."""
    service_class: str = ""


def check_attribution(said: Attribution) -> None:
    """Raises InvalidLimitError."""
    for field in ("session_id", "key_id", "service_class"):
        text = getattr(said, field)
        if len(text) > CHARACTERS_MAX or not text.isprintable():
            raise InvalidLimitError(
                f"{field} may have {CHARACTERS_MAX} characters, all of them visible", field=field
            )


def request_check() -> RequestCheck:
    """Of the worker's gate: a tenant asks in its own name, and says neither key nor class.

    Raises ScopeNotAllowedError, RoleNotAllowedError.
    """
    own_tenant = own_tenant_only(RULES)

    def check(principal: Principal, method: str, request: Any) -> None:
        own_tenant(principal, method, request)
        if principal.may(FRONTS):
            return
        if getattr(request, "key_id", "") or getattr(request, "service_class", ""):
            raise RoleNotAllowedError(
                "key_id and service_class are a gateway's to say; leave them empty",
                allowed=", ".join(sorted(FRONTS)),
                roles=", ".join(sorted(principal.roles)),
            )

    return check
