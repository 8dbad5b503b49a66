"""A session is its opener's: named by anybody else it is unknown. Event loop; no state."""

from typing import TYPE_CHECKING, Any

from cache_service.errors import SessionUnknownError
from cache_service.session import UNKNOWN_SESSION
from kvtier.access import RequestCheck
from kvtier.principals import Principal

if TYPE_CHECKING:
    from cache_service.cache import Cache

__all__ = ["own_session_only"]


def own_session_only(cache: "Cache") -> RequestCheck:
    """The gate's check of requests. What hangs on a session (leases, reservations) is named with
    its id, so nobody else reaches that either. Raises SessionUnknownError, in the core's own words:
    a stranger learns nothing."""

    def check(principal: Principal, _method: str, request: Any) -> None:
        session_id = getattr(request, "session_id", "")
        if session_id and cache.session_owner(session_id) not in (None, principal.key):
            raise SessionUnknownError(UNKNOWN_SESSION)

    return check
