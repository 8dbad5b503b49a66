"""NamespaceTable: the kinds of block that have rows, by number: namespace, payload size, how many.

The blocks of a namespace share one payload size. Only what an SSD recovered may hold another (left
by a client that lied about its layout), so the size is part of the kind and not assumed.

Invariant: a number means one kind as long as a row names it; then it is used again. Written by the
block tree, on the event loop.
"""

from collections import Counter
from collections.abc import Iterable

from kvtier.keys import NamespaceId

__all__ = ["NamespaceTable"]

Kind = tuple[NamespaceId, int]


class NamespaceTable:
    """Kind number -> namespace, payload bytes, rows."""

    def __init__(self) -> None:
        self._kinds: list[Kind] = []
        self._counts: list[int] = []
        self._numbers: dict[NamespaceId, dict[int, int]] = {}
        """Namespace -> payload bytes -> number."""
        self._free: list[int] = []

    def kind(self, number: int) -> Kind:
        """(namespace id, payload bytes)"""
        return self._kinds[number]

    def number(self, namespace_id: NamespaceId, payload_bytes: int) -> int | None:
        """None when there are no such blocks."""
        return self._numbers.get(namespace_id, {}).get(payload_bytes)

    def numbers(self, namespace_id: NamespaceId) -> frozenset[int]:
        """Of all kinds of a namespace."""
        return frozenset(self._numbers.get(namespace_id, {}).values())

    def known_payload_bytes(self, namespace_id: NamespaceId) -> int | None:
        """Payload size of a namespace's blocks; None when it has none."""
        return next(iter(self._numbers.get(namespace_id, ())), None)

    def enter(self, namespace_id: NamespaceId, payload_bytes: int, row_count: int = 1) -> int:
        """Counts rows in; returns their kind's number."""
        sizes = self._numbers.setdefault(namespace_id, {})
        number = sizes.get(payload_bytes)
        if number is None:
            number = sizes[payload_bytes] = self._new_number()
            self._kinds[number] = (namespace_id, payload_bytes)
        self._counts[number] += row_count
        return number

    def leave(self, number: int, row_count: int = 1) -> None:
        """Counts rows out."""
        self._counts[number] -= row_count
        if not self._counts[number]:
            namespace_id, payload_bytes = self._kinds[number]
            del self._numbers[namespace_id][payload_bytes]
            if not self._numbers[namespace_id]:
                del self._numbers[namespace_id]
            self._free.append(number)

    def _new_number(self) -> int:
        if self._free:
            return self._free.pop()
        self._kinds.append((NamespaceId(b""), 0))
        self._counts.append(0)
        return len(self._kinds) - 1

    def check_integrity(self, numbers: Iterable[int]) -> None:
        """`numbers` are those of all rows."""
        counted = Counter(numbers)
        assert counted == Counter({n: count for n, count in enumerate(self._counts) if count})
        for number in counted:
            assert self.number(*self._kinds[number]) == number
        assert sum(map(len, self._numbers.values())) == len(counted)
        assert sorted([*self._free, *counted]) == list(range(len(self._kinds)))
