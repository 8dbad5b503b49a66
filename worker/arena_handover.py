"""The client's half of the arena hand-over: a ticket for a file descriptor.

    connect to the Unix socket -> send the ticket -> one status byte and the descriptor

The connection stays open for as long as the session lives: when this process ends, however it ends,
the service sees it close and takes back what the session held. Stateless; any thread.
"""

import os
import socket
import stat

from worker.transfer import ArenaMap, NonsenseError

__all__ = ["take_arena"]


def take_arena(
    socket_path: str, ticket: bytes, arena_bytes: int, block_bytes: int, timeout_seconds: float
) -> tuple[ArenaMap, socket.socket]:
    """The mapped arena and the connection to keep. Raises OSError, NonsenseError.

    `timeout_seconds` bounds each step. OSError also means: not on this machine, another service
    listens there, or the ticket was refused.
    """
    if not stat.S_ISSOCK(os.stat(socket_path).st_mode):
        raise NonsenseError("the arena's socket path is no socket")
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_seconds)
        connection.connect(socket_path)
        connection.sendall(ticket)
        _, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
        if not descriptors:
            raise ConnectionRefusedError("the arena's socket did not take the ticket")
        try:
            arena = ArenaMap(descriptors[0], arena_bytes, block_bytes)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
    except BaseException:
        connection.close()
        raise
    return arena, connection
