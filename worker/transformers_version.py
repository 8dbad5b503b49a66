"""Which versions of transformers the worker runs with, and what differs between them.

Tested: 5.17, the pinned one and 5.24 (`make test-versions`; the matrix with 5.17 in `make test`).
Up to 5.14 latent attention caches expanded keys. Imports nothing of transformers, so an old one
gets as far as the refusal; any thread.
"""

import inspect
import re
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from worker.errors import TransformersVersionError

__all__ = ["OLDEST", "cache_argument", "check_transformers"]

OLDEST = (5, 17)


def check_transformers(found: str | None = None) -> None:
    """Raises TransformersVersionError unless the installed version, or `found`, is new enough."""
    try:
        found = found or version("transformers")
    except PackageNotFoundError:
        raise TransformersVersionError(
            "transformers is not installed; the worker comes with it as kvtier[worker]"
        ) from None
    numbers = re.match(r"(\d+)\.(\d+)", found)
    if numbers is None or tuple(int(number) for number in numbers.groups()) < OLDEST:
        raise TransformersVersionError(
            f"transformers {found} is installed; the worker needs {OLDEST[0]}.{OLDEST[1]} or newer"
        )


def cache_argument(model: Any) -> str:
    """By what name `model` takes its cache: 5.24 renamed it, family by family."""
    taken = inspect.signature(model.forward).parameters
    return "cache" if "cache" in taken else "past_key_values"
