"""Arithmetic of figures, and what is said of the machine they come from. Any thread."""

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ByteSize, TypeAdapter

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["byte_sizes", "machine", "percentile", "plain"]


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


def plain(settings: "DataclassInstance") -> dict[str, Any]:
    """What was measured, as JSON can say it."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items()}


def byte_sizes(text: str) -> tuple[int, ...]:
    """Sizes by comma, such as "256KiB,2MiB". Raises pydantic.ValidationError."""
    read = TypeAdapter(ByteSize).validate_python
    return tuple(int(read(part.strip())) for part in text.split(","))
