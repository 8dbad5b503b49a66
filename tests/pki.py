"""Certificates for tests: one authority that services believe, and others that they must not."""

import functools
import ssl
from pathlib import Path
from typing import Any

import grpc

from kvtier.certificates import CertificateAuthority
from kvtier.principals import Role, role_uri
from kvtier.tls import ClientTls, SecuritySettings, client_context

SCOPES = {Role.TENANT: ("acme",)}


class Pki:
    """An authority in `directory`, a server's certificate for loopback, and clients by role."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = CertificateAuthority(directory)
        self.server_file = self.authority.issue_server("server", ["127.0.0.1", "localhost"])
        self._numbers = iter(range(1_000_000))

    @property
    def security(self) -> SecuritySettings:
        return SecuritySettings(
            certificate_file=self.server_file,
            key_file=self.server_file.with_suffix(".key"),
            client_ca_file=self.authority.certificate_file,
        )

    @property
    def server_settings(self) -> list[str]:
        """The same for a command line."""
        files = self.security.model_dump(exclude={"development"})
        return [f"security.{name}={path}" for name, path in files.items()]

    @functools.cached_property
    def engine(self) -> grpc.ChannelCredentials:
        return self.client(role_uri(Role.ENGINE))

    def role(self, role: Role) -> grpc.ChannelCredentials:
        return self.client(role_uri(role, SCOPES.get(role, ())))

    def client(self, *uris: str, days: float = 1) -> grpc.ChannelCredentials:
        """A fresh certificate, and the trust in this authority's services."""
        return self.credentials(self.client_file(*uris, days=days))

    def client_file(self, *uris: str, days: float = 1) -> Path:
        name = f"client-{next(self._numbers)}"
        return self.authority.issue_client(name, uris, days)

    def lane_tls(self, certificate: Path) -> ssl.SSLContext:
        """The same for the bulk lane."""
        context = client_context(
            ClientTls(
                ca_file=self.authority.certificate_file,
                certificate_file=certificate,
                key_file=certificate.with_suffix(".key"),
            )
        )
        assert context is not None
        return context

    def credentials(self, certificate: Path, trust: Path | None = None) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(
            (trust or self.authority.certificate_file).read_bytes(),
            certificate.with_suffix(".key").read_bytes(),
            certificate.read_bytes(),
        )


def raw_call(channel: grpc.Channel, method: str, streams: Any) -> bytes:
    """One call with an empty message, by name; the first answer. Raises grpc.RpcError."""
    client_streaming, server_streaming = streams
    request: Any = iter([b""]) if client_streaming else b""
    if client_streaming and server_streaming:
        return next(channel.stream_stream(method)(request, timeout=10))
    if client_streaming:
        return channel.stream_unary(method)(request, timeout=10)
    if server_streaming:
        return next(channel.unary_stream(method)(request, timeout=10), b"")
    return channel.unary_unary(method)(request, timeout=10)
