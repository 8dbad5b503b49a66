"""What `kvtier up` needs for itself before it starts anything: its directory and its ports.

Invariant: one `kvtier up` per directory, for as long as the claim is open; the operating system
ends it with the process, so nothing stale is left behind. Main thread.
"""

import fcntl
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from kvtier.errors import KvtierError

__all__ = ["ClaimError", "check_addresses", "claim_directory"]


class ClaimError(KvtierError):
    """Something else has it, or it cannot be used; the message says what to do."""

    reason = "CLAIM"


@contextmanager
def claim_directory(directory: Path) -> Iterator[None]:
    """Holds `directory` for this process. Raises ClaimError."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ClaimError(
            f"cannot write in {directory}: {error.strerror}; choose another with --directory"
        ) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise ClaimError(
                f"another kvtier up (process {holder}) runs on {directory}; use that one, stop it"
                " with Ctrl-C, or choose another place with --directory"
            ) from None
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def check_addresses(addresses: Mapping[str, str]) -> None:
    """`addresses`: what to write on the command line to change it -> HOST:PORT.

    Raises ClaimError for the first that cannot be listened on now. The services find out for
    themselves; asking first saves a newcomer the wait and names the right option.
    """
    seen: set[str] = set()
    for option, address in addresses.items():
        host, _, port = address.rpartition(":")
        if not port.isdigit() or not host or int(port) > 65_535:
            raise ClaimError(f"{address} is not an address; write {option}")
        if port != "0" and address in seen:
            raise ClaimError(f"{address} is given twice; change one with {option}")
        seen.add(address)
        problem = _problem_of(host.strip("[]"), int(port))
        if problem:
            raise ClaimError(
                f"cannot listen on {address} ({problem}); when that is another kvtier up, use or"
                f" stop it, else choose another address with {option}"
            )


def _problem_of(host: str, port: int) -> str:
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
            probe.listen(1)
    except OSError as error:
        return str(error.strerror or error)
    return ""
