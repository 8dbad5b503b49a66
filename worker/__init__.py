"""The kitchen: paged attention on unmodified Hugging Face decoders.

Goals: compute only what no tier holds; keep finished requests' pages; hand full blocks to the cache
service and take prefixes back without ever waiting for it longer than recomputing would take; tell
each client, and the till, exactly what was reused.

Non-goals: deciding what the cache keeps, prices, and training. The cache service and billing are
seen only through `proto/`.
"""

__all__: list[str] = []
