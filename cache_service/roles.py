"""The one table: calls of the cache service -> who may make them. Pure data.

A call that has no row is refused to everybody; a test holds that every call has one.
"""

from collections.abc import Mapping

from kvtier.access import Rule, rules
from kvtier.principals import Role

__all__ = ["RULES"]

_DATA = Rule(frozenset({Role.ENGINE}))
_EXPLAIN = Rule(frozenset({Role.ENGINE, Role.OPERATOR}))
_SEE_ALL = Rule(frozenset({Role.OPERATOR}))
_LOOK = Rule(frozenset({Role.OPERATOR, Role.BILLER, Role.AUDITOR}))
_OPERATE = Rule(frozenset({Role.OPERATOR}), audited=True)

_CACHE = rules(
    "kvtier.v1.CacheService",
    OpenSession=_DATA,
    CloseSession=_DATA,
    LookupPrefix=_DATA,
    AcquirePrefix=_DATA,
    AcquireResident=_DATA,
    RenewLeases=_DATA,
    ReleaseLease=_DATA,
    ReserveBlocks=_DATA,
    CommitBlocks=_DATA,
    AbortReservation=_DATA,
    LoadBlocks=_DATA,
    StoreBlocks=_DATA,
    GetStats=_LOOK,
    VerifyBlocks=_OPERATE,
)

# Events name blocks, and whoever may read blocks and knows a name has the block: no engine's.
_EVENTS = rules("kvtier.v1.CacheEvents", WatchEvents=Rule(frozenset({Role.GATEWAY, Role.OPERATOR})))

_BULK = rules("kvtier.v1.BulkService", OpenBulkLane=_DATA)

_EXPLAINING = rules(
    "kvtier.v1.ExplainService",
    ExplainPrefix=_EXPLAIN,
    # An engine sees its own sessions' alone: `edge/explain_calls.py`.
    ExplainAcquire=_EXPLAIN,
    ListTree=_SEE_ALL,
)

# Who removes blocks can see from the receipt which there were: no engine's.
_CONTROL = rules(
    "kvtier.v1.ControlService",
    PurgeBlocks=_OPERATE,
    PinPrefix=_OPERATE,
    UnpinPrefix=_OPERATE,
    PrewarmPrefix=_OPERATE,
    ListPins=_SEE_ALL,
)

RULES: Mapping[str, Rule] = {**_CACHE, **_EVENTS, **_BULK, **_EXPLAINING, **_CONTROL}
