"""The shelves: bytes in, the same bytes out.

Goals: hold blocks in host RAM and on SSD within exact capacities; never return a wrong byte; be
warm again after a crash; cost little CPU.

Non-goals: tenants, leases, money, and deciding *which* block should stay. Policies in `eviction`
and `admission`-like choices are pure functions here; their owner in `cache_service/` applies them.
"""

__all__: list[str] = []
