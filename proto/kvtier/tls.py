"""TLS of both ends: what is set, what it must be, and when a connection may do without.

    server    certificate_file + key_file + client_ca_file    mutual: clients show theirs
    client    ca_file + certificate_file + key_file
    clear     a Unix socket (owner only); loopback, when `development` says so; nothing else

Read once at start; a changed file counts after a restart. Any thread.
"""

import ipaddress
import os
import ssl
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from pydantic import model_validator

from kvtier.errors import KvtierError
from kvtier.settings import SettingsModel

__all__ = [
    "ClientTls",
    "SecuritySettings",
    "TlsFileError",
    "TlsRequiredError",
    "channel_credentials",
    "check_listeners",
    "client_context",
    "in_clear",
    "is_loopback",
    "open_context",
    "open_credentials",
    "peer_credentials",
    "server_context",
    "server_credentials",
]


class TlsRequiredError(KvtierError):
    """An address that may not be used in clear, and nothing to encrypt with."""

    reason = "TLS_REQUIRED"


class TlsFileError(KvtierError):
    """A certificate or key cannot be used; the message names the file."""

    reason = "TLS_FILE"


class SecuritySettings(SettingsModel):
    """How a service is reached."""

    development: bool = False
    certificate_file: Path | None = None
    key_file: Path | None = None
    client_ca_file: Path | None = None

    @model_validator(mode="after")
    def _all_or_none(self) -> "SecuritySettings":
        _check_all_or_none(
            certificate_file=self.certificate_file,
            key_file=self.key_file,
            client_ca_file=self.client_ca_file,
        )
        return self


class ClientTls(SettingsModel):
    """What this process shows to the services it calls, and whom it believes."""

    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None

    @model_validator(mode="after")
    def _all_or_none(self) -> "ClientTls":
        _check_all_or_none(
            ca_file=self.ca_file, certificate_file=self.certificate_file, key_file=self.key_file
        )
        return self


def check_listeners(addresses: Iterable[str], security: SecuritySettings) -> None:
    """Raises TlsRequiredError, TlsFileError: before anything slow is started."""
    credentials = server_credentials(security)
    for address in addresses:
        in_clear(address, security, credentials)


def in_clear(
    address: str, security: SecuritySettings, credentials: grpc.ServerCredentials | None
) -> bool:
    """Whether to listen there in clear. Raises TlsRequiredError where that is not allowed."""
    if _is_unix(address):
        return True
    if credentials is not None:
        return False
    if not is_loopback(address):
        raise TlsRequiredError(
            f"will not listen on {address} in clear: set security.certificate_file,"
            " security.key_file and security.client_ca_file, or listen on a Unix socket",
            address=address,
        )
    if not security.development:
        raise TlsRequiredError(
            f"will not listen on {address} in clear: set security.certificate_file,"
            " security.key_file and security.client_ca_file, or listen on a Unix socket, or set"
            " security.development=true, which lets everyone on this machine in",
            address=address,
        )
    return True


def server_credentials(security: SecuritySettings) -> grpc.ServerCredentials | None:
    """For mutual TLS; None when none is set. Raises TlsFileError."""
    if not (security.certificate_file and security.key_file and security.client_ca_file):
        return None
    pair = _read_pair(security.certificate_file, security.key_file)
    authorities = _read_authorities(security.client_ca_file)
    return grpc.ssl_server_credentials(
        [(pair.key, pair.chain)], root_certificates=authorities, require_client_auth=True
    )


def server_context(security: SecuritySettings) -> ssl.SSLContext | None:
    """The same for plain sockets."""
    if not (security.certificate_file and security.key_file and security.client_ca_file):
        return None
    _read_pair(security.certificate_file, security.key_file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    return _loaded(context, security.certificate_file, security.key_file, security.client_ca_file)


def open_context(certificate_file: Path, key_file: Path) -> ssl.SSLContext:
    """For a server of callers who show no certificate but something else. Raises TlsFileError."""
    _read_pair(certificate_file, key_file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # Not all of the world's clients have 1.3.
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate_file, key_file)
    return context


def open_credentials(certificate_file: Path, key_file: Path) -> grpc.ServerCredentials:
    """The same for gRPC."""
    pair = _read_pair(certificate_file, key_file)
    return grpc.ssl_server_credentials([(pair.key, pair.chain)])


def client_context(tls: ClientTls) -> ssl.SSLContext | None:
    """For plain sockets, with the service's name checked; None without TLS. Raises TlsFileError."""
    if not (tls.ca_file and tls.certificate_file and tls.key_file):
        return None
    _read_pair(tls.certificate_file, tls.key_file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return _loaded(context, tls.certificate_file, tls.key_file, tls.ca_file)


def channel_credentials(address: str, tls: ClientTls) -> grpc.ChannelCredentials | None:
    """For a channel to `address`; None for one in clear: a Unix socket, or loopback without TLS.

    Raises TlsRequiredError, TlsFileError.
    """
    if _is_unix(address):
        return None
    if not (tls.ca_file and tls.certificate_file and tls.key_file):
        if is_loopback(address):
            return None
        raise TlsRequiredError(
            f"will not talk to {address} in clear: give the CA, a client certificate and its key",
            address=address,
        )
    pair = _read_pair(tls.certificate_file, tls.key_file)
    return grpc.ssl_channel_credentials(_read_authorities(tls.ca_file), pair.key, pair.chain)


def peer_credentials(
    key: str, address: str, tls: ClientTls, development: bool
) -> grpc.ChannelCredentials | None:
    """How a service calls another: as `channel_credentials`, and in clear on loopback only in
    development. `key`: the setting that has the address. None without an address.

    Raises TlsRequiredError, TlsFileError.
    """
    if not address:
        return None
    credentials = channel_credentials(address, tls)
    if credentials is None and not _is_unix(address) and not development:
        raise TlsRequiredError(
            f"{key} {address} would be called in clear: set client.ca_file,"
            " client.certificate_file and client.key_file, or name a Unix socket, or set"
            " security.development=true",
            address=address,
        )
    return credentials


def _loaded(
    context: ssl.SSLContext, certificate_file: Path, key_file: Path, ca_file: Path
) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate_file, key_file)
    context.load_verify_locations(cadata=_read_authorities(ca_file).decode("ascii", "ignore"))
    return context


@dataclass(frozen=True, slots=True)
class _Pair:
    chain: bytes
    key: bytes


def _read_pair(certificate_file: Path, key_file: Path) -> _Pair:
    chain, key = _read(certificate_file), _read(key_file)
    certificates = _parse_certificates(certificate_file, chain)
    leaf = certificates[0]
    try:
        private = serialization.load_pem_private_key(key, password=None)
    except (ValueError, TypeError) as error:
        raise TlsFileError(
            f"{key_file} is not a private key in PEM without a password: {error}", file=key_file
        ) from None
    der = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if private.public_key().public_bytes(*der) != leaf.public_key().public_bytes(*der):
        raise TlsFileError(
            f"{key_file} is not the key of {certificate_file}; name the two that belong together",
            file=key_file,
        )
    if os.stat(key_file).st_mode & 0o007:
        raise TlsFileError(
            f"{key_file} can be read by everyone; chmod 600 {key_file}", file=key_file
        )
    _check_time(certificate_file, leaf)
    return _Pair(chain, key)


def _read_authorities(path: Path) -> bytes:
    pem = _read(path)
    for certificate in _parse_certificates(path, pem):
        _check_time(path, certificate)
    return pem


def _parse_certificates(path: Path, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise TlsFileError(
            f"{path} holds no certificate in PEM: {error}; name the right file", file=path
        ) from None


def _check_time(path: Path, certificate: x509.Certificate) -> None:
    if certificate.not_valid_after_utc.timestamp() <= time.time():
        raise TlsFileError(
            f"{path} expired at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; renew it",
            file=path,
        )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsFileError(
            f"cannot read {path}: {error.strerror}; make it readable, name another, or have one"
            " made: kvtier certificates make",
            file=path,
        ) from None


def _check_all_or_none(**files: Path | None) -> None:
    missing = [name for name, path in files.items() if path is None]
    if missing and len(missing) < len(files):
        raise ValueError(f"set {', '.join(missing)} as well, or none of {', '.join(files)}")


def _is_unix(address: str) -> bool:
    return address.startswith("unix:")


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches HOST:PORT."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
