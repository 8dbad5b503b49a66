"""ModelNames: which model and block size a namespace has, as its engines said; kept on the disk.

A namespace is a digest, and what the SSD holds outlives the sessions that named it: after a restart
it is metered under the name that is here. The first name of a namespace stands. Event loop; a new
name is synced at once, which happens once a namespace.
"""

import json
import logging
import os
from pathlib import Path
from typing import NamedTuple

from kvtier.keys import NamespaceId

__all__ = ["ModelNames", "Named"]

log = logging.getLogger(__name__)

NAMES_MAX = 10_000
"""More namespaces are not metered."""

CHARACTERS_MAX = 1_024


class Named(NamedTuple):
    model: str
    block_tokens: int


class ModelNames:
    """`path`: of the file, in a directory that is there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._names = _read(path)

    def get(self, namespace_id: NamespaceId) -> Named | None:
        return self._names.get(namespace_id)

    def note(self, namespace_id: NamespaceId, model: str, block_tokens: int) -> bool:
        """Whether that is new. A name that could not be written is good until the end."""
        if not model or namespace_id in self._names or len(self._names) >= NAMES_MAX:
            return False
        if len(model) > CHARACTERS_MAX or not model.isprintable():
            return False
        self._names[namespace_id] = Named(model, block_tokens)
        try:
            self._write()
        except OSError as error:
            log.error(
                "a model's name cannot be kept; what the SSD has of it is not metered after a"
                " restart until a worker names it again",
                extra={"path": str(self._path), "problem": error.strerror},
            )
        return True

    def _write(self) -> None:
        fresh = self._path.with_suffix(".new")
        data = {name.hex(): list(each) for name, each in self._names.items()}
        with fresh.open("w", encoding="utf-8") as file:
            json.dump(data, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(self._path)


def _read(path: Path) -> dict[NamespaceId, Named]:
    try:
        data = json.loads(path.read_text("utf-8"))
        return {
            NamespaceId(bytes.fromhex(name)): Named(str(model), int(tokens))
            for name, (model, tokens) in data.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        log.error(
            "the names of models cannot be read; workers say them again",
            extra={"path": str(path), "problem": str(error)},
        )
        return {}
