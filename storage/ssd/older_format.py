"""A directory of an older format is emptied before anything in it could be taken for ours.

Invariant: the marker is the last to change, so a crash in between leaves an older directory, which
is emptied again. Nothing but the keys of its index is looked at, to count what is lost. Opening
thread, under the lock.
"""

from pathlib import Path

from storage.env import Env
from storage.ssd.format import INDEX_DIRECTORY, SEGMENT_DIRECTORY, parse_segment_name
from storage.ssd.index import count_blocks

__all__ = ["empty_older"]


def empty_older(env: Env, path: Path) -> int | None:
    """Removes index and segments; how many blocks the index named, None when it cannot be read.

    Raises OSError. The caller then writes the marker.
    """
    names = env.listdir(path)
    lost: int | None = 0
    if INDEX_DIRECTORY in names:
        lost = count_blocks(path / INDEX_DIRECTORY)
        env.remove_tree(path / INDEX_DIRECTORY)
        env.fsync_directory(path)
    if SEGMENT_DIRECTORY in names:
        folder = path / SEGMENT_DIRECTORY
        for name in env.listdir(folder):
            if parse_segment_name(name) is not None:
                env.unlink(folder / name)
        env.fsync_directory(folder)
    return lost
