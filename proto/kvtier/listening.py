"""Taking an address for one's own: whose it is, and what a dead owner left. Any thread; blocks."""

import socket
import stat
from pathlib import Path

from kvtier.errors import KvtierError

__all__ = ["AddressInUseError", "clear_stale_socket"]


class AddressInUseError(KvtierError):
    """Another process listens where this service was told to."""

    reason = "ADDRESS_IN_USE"


def clear_stale_socket(path: Path) -> None:
    """Removes a socket file nobody listens on. Raises AddressInUseError when somebody does."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise AddressInUseError(f"{path} is there and is not a socket; remove it", path=path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise AddressInUseError(
                f"cannot tell whether {path} is in use: {error}", path=path
            ) from error
    raise AddressInUseError(f"another process listens on {path}", path=path)
