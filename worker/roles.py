"""The one table: calls of the worker -> who may make them. Pure data.

A call that has no row is refused to everybody; a test holds that every call has one.
"""

from collections.abc import Mapping

from kvtier.access import Rule, rules
from kvtier.principals import EVERY_ROLE, Role

__all__ = ["RULES"]

_INFERENCE = rules(
    "kvtier.v1.InferenceService",
    # A tenant asks in its own name alone: `own_tenant_only`.
    Generate=Rule(frozenset({Role.TENANT, Role.GATEWAY, Role.OPERATOR})),
    GetModel=Rule(EVERY_ROLE),
)

# Names of blocks are for whoever may ask the cache service about them, or follow its events.
_DESCRIBING = rules(
    "kvtier.v1.DescribeService", DescribePrompt=Rule(frozenset({Role.GATEWAY, Role.OPERATOR}))
)

# What opens a request's digests is for who asked it alone: `own_tenant_only`.
_OPENING = rules(
    "kvtier.v1.ReceiptOpeningService", OpenReceipt=Rule(frozenset({Role.TENANT, Role.OPERATOR}))
)

RULES: Mapping[str, Rule] = {**_INFERENCE, **_DESCRIBING, **_OPENING}
