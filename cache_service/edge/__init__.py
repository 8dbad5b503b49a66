"""The gRPC edge of the cache, one module for each concern of a service's calls.

    session_calls    open, close
    read_calls       look up, acquire, load, renew, release
    store_calls      reserve, store, commit, abort
    operator_calls   statistics, verify
    event_calls      watch events
    calls            what these share
    explain_calls    the service that explains hits and misses
    services         which services are served

Goals: check, call, convert. Non-goals: decisions. `cache_service/servicer.py` puts the calls of
one service together; another service has its own modules and its own servicer here.
"""

__all__: list[str] = []
