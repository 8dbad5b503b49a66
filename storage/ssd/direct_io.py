"""Does direct I/O work in a folder? Only trying it tells. Opening thread."""

import errno
import os
from pathlib import Path

from storage.env import Env
from storage.ssd.files import aligned_buffer, read_all, write_all
from storage.ssd.format import TEMPORARY_SUFFIX
from storage.tier import PAGE_BYTES

__all__ = ["segment_open_flags"]


def segment_open_flags(env: Env, folder: Path) -> tuple[int, str]:
    """Flags to open segments with: O_DIRECT where a page really goes through that way. Else what
    the file system said."""
    probe = folder / f"direct-io{TEMPORARY_SUFFIX}"
    page = aligned_buffer(PAGE_BYTES)
    flags, problem = os.O_RDWR | os.O_DIRECT, ""
    try:
        fd = env.open(probe, flags | os.O_CREAT)
        try:
            write_all(env, fd, [page], 0)
            read_all(env, fd, [page], 0)
        finally:
            env.close(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        flags, problem = os.O_RDWR, error.strerror or str(error)
    if probe.name in env.listdir(folder):
        env.unlink(probe)
    return flags, problem
