"""Arithmetic of figures, and what is said of the machine they come from. Any thread."""

import os
import platform
from collections.abc import Sequence
from typing import Any

from pydantic import ByteSize, TypeAdapter

__all__ = ["byte_sizes", "machine", "percentile"]


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest value that so many per cent do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def machine() -> dict[str, Any]:
    """Where figures come from, and how busy it was with other work."""
    return {
        "machine": platform.machine(),
        "system": platform.platform(),
        "cpu_count": os.cpu_count(),
        "load_average": os.getloadavg()[0],
    }


def byte_sizes(text: str) -> tuple[int, ...]:
    """Sizes by comma, such as "256KiB,2MiB". Raises pydantic.ValidationError."""
    read = TypeAdapter(ByteSize).validate_python
    return tuple(int(read(part.strip())) for part in text.split(","))
