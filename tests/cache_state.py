"""All that a cache's index knows, as bytes: equal before and after means that nothing changed."""

import pickle

from cache_service.cache import Cache

__all__ = ["index_state"]


def index_state(cache: Cache) -> bytes:
    """Rows, places, orders with their heaps, counters, remembered absences."""
    index = cache._parts.index
    columns = {
        name: column[: index.tree.directory.row_high]
        for name, column in index.tree.columns._arrays.items()
    }
    orders = [
        (
            {name: value for name, value in vars(order).items() if name != "_leaves"},
            [(heap._heap, heap._queued, heap._count_max) for heap in order._leaves],
        )
        for order in (index._host, index._ssd)
    ]
    return pickle.dumps((columns, orders, cache.stats().counters, index.absences._reasons))
