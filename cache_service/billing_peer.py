"""How the cache service calls billing: with its certificate, or in clear where that may be.

Read once at start. Pure but for reading the files."""

import grpc

from cache_service.settings import CacheSettings
from kvtier.tls import TlsRequiredError, channel_credentials

__all__ = ["billing_credentials"]


def billing_credentials(settings: CacheSettings) -> grpc.ChannelCredentials | None:
    """None: in clear. Raises TlsRequiredError, TlsFileError."""
    address = settings.billing.address
    if address.startswith("unix:"):
        return None
    credentials = channel_credentials(address, settings.client)
    if credentials is None and not settings.security.development:
        raise TlsRequiredError(
            f"billing.address {address} would be called in clear: set client.ca_file,"
            " client.certificate_file and client.key_file, or name a Unix socket, or set"
            " security.development=true",
            address=address,
        )
    return credentials
