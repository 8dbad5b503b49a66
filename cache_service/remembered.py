"""Remembered: a bounded memory of what ended, oldest forgotten first. Event loop only."""

from collections import OrderedDict
from typing import Generic, TypeVar

__all__ = ["Remembered"]

Value = TypeVar("Value")


class Remembered(Generic[Value]):
    """The last `count_max` ids that ended, and how."""

    def __init__(self, count_max: int) -> None:
        self._count_max = count_max
        self._values: OrderedDict[str, Value] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str) -> Value | None:
        return self._values.get(key)

    def put(self, key: str, value: Value) -> None:
        self._values[key] = value
        if len(self._values) > self._count_max:
            self._values.popitem(last=False)
