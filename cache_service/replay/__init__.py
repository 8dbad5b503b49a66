"""`kvtier replay`: a recorded trace through the policies that serve.

Goals: say what a policy, a capacity and an admission rule are worth on real requests, next to the
best that anyone could do; the policy objects are those of `storage.policy`, the rules that keep
blocks from being stranded are those of the block index.

Non-goals: time and bytes. Blocks have one size, reads and writes take no time, requests come one
after the other. Nothing here touches a running service.
"""

__all__: list[str] = []
