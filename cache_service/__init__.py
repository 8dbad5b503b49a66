"""The doorkeeper: decides who may touch which block, and when.

Goals: answer what is cached, lease it, take new blocks in two phases, place and evict blocks over
the tiers within exact capacities, give a reason for every miss.

Non-goals: computing KV, knowing prompts or prices. Cache bytes may be lost; they are never wrong.
"""

__all__: list[str] = []
