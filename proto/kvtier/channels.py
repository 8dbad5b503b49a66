"""Channels of kvtier's clients. Any thread.

Credentials are read once (`tls.channel_credentials`), so that connecting anew never fails over a
file; None is a channel in clear.
"""

from collections.abc import Sequence
from typing import Any

import grpc

__all__ = ["open_aio_channel", "open_channel"]

Options = Sequence[tuple[str, Any]]

OPTIONS: Options = (
    # A web proxy that the environment names is not for a service of one's own.
    ("grpc.enable_http_proxy", 0),
)


def open_channel(
    address: str, credentials: grpc.ChannelCredentials | None = None, options: Options = ()
) -> grpc.Channel:
    """A channel to HOST:PORT or unix:PATH; it connects with the first call."""
    if credentials is None:
        return grpc.insecure_channel(address, options=(*OPTIONS, *options))
    return grpc.secure_channel(address, credentials, options=(*OPTIONS, *options))


def open_aio_channel(
    address: str, credentials: grpc.ChannelCredentials | None = None, options: Options = ()
) -> grpc.aio.Channel:
    """The same for an event loop."""
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=(*OPTIONS, *options))
    return grpc.aio.secure_channel(address, credentials, options=(*OPTIONS, *options))
