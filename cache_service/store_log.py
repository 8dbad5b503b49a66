"""StoreLog: which request stored what, of the last stores.

A commit is remembered by the first block it stored: everything else it stored continues that one.

Invariant: bounded in number; the newest push out the oldest. Event loop only.
"""

from collections import deque

from kvtier.keys import BlockHash, NamespaceId

__all__ = ["StoreLog"]

STORES_MAX = 16_384
"""A record takes about 300 bytes."""


class StoreLog:
    """The last `STORES_MAX` commits that stored something, and whose they were."""

    def __init__(self) -> None:
        self._stores: deque[tuple[str, NamespaceId, BlockHash]] = deque(maxlen=STORES_MAX)

    def note(self, request_id: str, namespace_id: NamespaceId, first: BlockHash) -> None:
        """A commit made `first`, and blocks that continue it, visible."""
        if request_id:
            self._stores.append((request_id, namespace_id, first))

    def firsts(self, request_id: str) -> list[tuple[NamespaceId, BlockHash]]:
        """First blocks of a request's commits, each once, the earliest first. An engine that stores
        in several calls numbers them: "ID/1", "ID/2"."""
        found = (
            (namespace_id, first)
            for stored_id, namespace_id, first in self._stores
            if stored_id == request_id or _numbered(stored_id, request_id)
        )
        return list(dict.fromkeys(found))

    def check_integrity(self) -> None:
        assert len(self._stores) <= STORES_MAX


def _numbered(stored_id: str, request_id: str) -> bool:
    head, slash, number = stored_id.rpartition("/")
    return bool(slash) and head == request_id and number.isdigit()
