"""Events: what the tiers gain and lose, in order, for whoever keeps an index of this cache.

    index -> changes   rows and codes, noted as copies come and go; resolved a batch at a time
             ring      the last events, in columns, by sequence number
             runs      columns -> runs of alike events or blocks               (pure)
             snapshot  all rows, a chunk at a time
             log       the side of the cache that owns these
             watching  watchers: bounded, each at its own position
    printing           `kvtier cache events`

Invariant: an index rebuilt from a snapshot and the events after it is the tree's, at every event.
The cost on the way of a store is noting two integers a copy. Event loop only.
"""

__all__: list[str] = []
