"""How the worker calls the cache service and billing: with its certificate, or in clear where that
may be. Read once at start. Pure but for reading the files."""

import ssl
from dataclasses import dataclass

import grpc

from kvtier.tls import client_context, peer_credentials
from worker.settings import WorkerSettings

__all__ = ["Peers", "peers_of"]


@dataclass(frozen=True, slots=True)
class Peers:
    """Credentials for each; None for in clear."""

    cache: grpc.ChannelCredentials | None
    cache_lane: ssl.SSLContext | None
    """The same material, for the cache service's bulk lane."""
    billing: grpc.ChannelCredentials | None


def peers_of(settings: WorkerSettings) -> Peers:
    """Raises TlsRequiredError, TlsFileError."""
    tls, development = settings.client, settings.security.development
    cache = peer_credentials("cache.address", settings.cache.address, tls, development)
    return Peers(
        cache,
        client_context(tls) if cache is not None else None,
        peer_credentials("billing.address", settings.billing.address, tls, development),
    )
