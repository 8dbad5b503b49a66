"""The shared tier: blocks that one host computed, for every host, on an existing engine.

Goals: the longest prefix with a handful of requests; nothing that comes back is believed before it
was checked; every call has a deadline; the engine behind it is a small protocol.

Non-goals: a protocol between hosts of our own; eviction and expiry, which are the engine's;
deciding what is written and when it is asked: the owner in `cache_service/` does.

    levels.py           which runs of blocks are objects, and how they are found   (pure)
    extent.py           an object's bytes                                          (pure)
    sealing.py          keys of sealed extents                                     (pure)
    objects.py          what an engine must do: the protocol
    object_store.py     object stores and directories, through obstore
    mooncake_store.py   Mooncake Store
    tier.py             find, read, write, forget; deadlines
"""

__all__: list[str] = []
