"""How the worker calls the cache service and billing: with its certificate, or in clear where that
may be. Read once at start. Pure but for reading the files."""

import ssl
from dataclasses import dataclass

import grpc

from kvtier.tls import TlsRequiredError, channel_credentials, client_context
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
    cache = _credentials(settings, "cache.address", settings.cache.address)
    return Peers(
        cache,
        client_context(settings.client) if cache is not None else None,
        _credentials(settings, "billing.address", settings.billing.address),
    )


def _credentials(
    settings: WorkerSettings, key: str, address: str
) -> grpc.ChannelCredentials | None:
    if not address or address.startswith("unix:"):
        return None
    credentials = channel_credentials(address, settings.client)
    if credentials is None and not settings.security.development:
        raise TlsRequiredError(
            f"{key} {address} would be called in clear: set client.ca_file,"
            " client.certificate_file and client.key_file, or name a Unix socket, or set"
            " security.development=true",
            address=address,
        )
    return credentials
