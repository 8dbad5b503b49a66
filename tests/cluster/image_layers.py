"""What lies in the layers of an image, also what a later one hides or takes away. Blocks."""

import os
import re
import subprocess
import tarfile
from collections.abc import Iterator
from typing import IO

from tests.cluster.engine import Engine

__all__ = ["private_keys_in_layers"]

FILE_BYTES_MAX = 64 * 1024
"""Of what is looked into: a key is small."""

PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/=\s]{40}")


def private_keys_in_layers(engine: Engine, image: str) -> tuple[int, list[str]]:
    """How many files were looked into, and the paths of those with a private key."""
    looked, found = 0, []
    for path, content in _small_files(engine, image):
        looked += 1
        if PRIVATE_KEY.search(content):
            found.append(path)
    return looked, found


def _small_files(engine: Engine, image: str) -> Iterator[tuple[str, bytes]]:
    command = ("docker", "save", image)
    env = {**os.environ, **engine.env}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env) as save:
        assert save.stdout is not None
        with tarfile.open(fileobj=save.stdout, mode="r|") as outer:
            for member in outer:
                inner = outer.extractfile(member) if member.isfile() else None
                if inner is not None:
                    yield from _files_of_layer(inner)
        while save.stdout.read(FILE_BYTES_MAX):
            pass  # what is after the end of the archive
        assert save.wait() == 0


def _files_of_layer(layer: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    """Nothing for what is no layer: an image has descriptions beside them."""
    try:
        files = tarfile.open(fileobj=layer, mode="r|*")  # noqa: SIM115
    except tarfile.ReadError:
        return
    with files:
        for member in files:
            small = member.isreg() and member.size <= FILE_BYTES_MAX
            file = files.extractfile(member) if small else None
            if file is not None:
                yield member.name, file.read()
