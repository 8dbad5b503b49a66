"""The eviction policies by name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from storage.policy.arc import Arc
from storage.policy.greedy_dual import GreedyDual
from storage.policy.lru import Lru
from storage.policy.order import EvictionOrder
from storage.policy.s3_fifo import S3Fifo

__all__ = ["DEFAULT_POLICY", "POLICIES", "eviction_order"]

POLICIES: Mapping[str, Callable[[], EvictionOrder]] = MappingProxyType(
    {"greedy_dual": GreedyDual, "lru": Lru, "arc": Arc, "s3_fifo": S3Fifo}
)
DEFAULT_POLICY = "greedy_dual"


def eviction_order(policy: str = DEFAULT_POLICY, backed: bool = False) -> EvictionOrder:
    """An empty order of the policy; `backed` when a lower tier keeps what leaves this one.

    Raises ValueError when there is no policy of this name.
    """
    if policy not in POLICIES:
        raise ValueError(f"no eviction policy {policy!r}; there are {', '.join(POLICIES)}")
    if policy == "greedy_dual" and backed:
        return GreedyDual(once=8, again=9)
    return POLICIES[policy]()
