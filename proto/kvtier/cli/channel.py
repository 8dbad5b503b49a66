"""Channels of the command line to services on this or another machine."""

import grpc

__all__ = ["open_channel"]

OPTIONS = (
    # A web proxy that the environment names is not for a service on this machine.
    ("grpc.enable_http_proxy", 0),
)


def open_channel(address: str) -> grpc.Channel:
    """A channel to HOST:PORT or unix:PATH; it connects with the first call."""
    return grpc.insecure_channel(address, options=OPTIONS)
