"""A certificate authority in a directory: for trying mutual TLS, for one machine, and for tests.

    ca.pem ca.key         the authority
    NAME.pem NAME.key     what it issued: a server by host names, a client by roles

Nothing is overwritten unless a renewal is asked for. Files that take the place of others, and the
authority's, are written beside their names, synced and renamed, the key first: a process that dies
in the middle is made good by the next. Whoever has an authority of his own needs none of this: what
counts is the certificate's URI (`principals.py`). Main thread; blocks.
"""

import ipaddress
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kvtier.errors import KvtierError

__all__ = [
    "CertificateAuthority",
    "CertificateExistsError",
    "alternative_names",
    "client_names",
    "server_names",
]

CLOCK_SLACK = timedelta(minutes=5)
"""A certificate counts from a little ago: not all clocks are equal."""


class CertificateExistsError(KvtierError):
    """A file is there already; the message names it."""

    reason = "CERTIFICATE_EXISTS"


class CertificateAuthority:
    """Made in `directory`, or opened there. Raises CertificateExistsError, OSError, ValueError."""

    def __init__(self, directory: Path, days: float = 3650, issued: Path | None = None) -> None:
        """What it issues goes to the directory `issued` with a copy of `ca.pem`, without a word
        beside its own key: whoever reads that can issue anything."""
        self._directory = directory if issued is None else issued
        self.certificate_file = directory / "ca.pem"
        if self.certificate_file.exists():
            self._certificate = x509.load_pem_x509_certificate(self.certificate_file.read_bytes())
            self._key = _load_key(directory / "ca.key")
            self._hand_out()
            return
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._key = _authority_key(directory / "ca.key")
        name = _name("kvtier certificate authority")
        builder = _builder(name, name, self._key.public_key(), timedelta(days=days))
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        self._certificate = builder.sign(self._key, hashes.SHA256())
        pem = self._certificate.public_bytes(serialization.Encoding.PEM)
        _replace(self.certificate_file, pem, 0o644)
        self._hand_out()

    def _hand_out(self) -> None:
        if self._directory != self.certificate_file.parent:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _replace(self._directory / "ca.pem", self.certificate_file.read_bytes(), 0o644)

    def issue_server(
        self, name: str, hosts: Sequence[str], days: float = 365, *, renew: bool = False
    ) -> Path:
        """A service's certificate for host names and addresses; its file, `.key` beside it.

        With `renew` it takes the place of one that is there, with a new key.
        """
        return self._issue(name, server_names(hosts), ExtendedKeyUsageOID.SERVER_AUTH, days, renew)

    def issue_client(
        self, name: str, uris: Sequence[str], days: float = 365, *, renew: bool = False
    ) -> Path:
        """A caller's certificate for roles (`principals.role_uri`); `renew` as of a server's."""
        return self._issue(name, client_names(uris), ExtendedKeyUsageOID.CLIENT_AUTH, days, renew)

    def find(self, name: str) -> x509.Certificate | None:
        """The certificate of that name; None when there is none of this authority whose key lies
        beside it."""
        try:
            pem = (self._directory / f"{name}.pem").read_bytes()
            key = (self._directory / f"{name}.key").read_bytes()
            certificate = x509.load_pem_x509_certificate(pem)
            private = serialization.load_pem_private_key(key, password=None)
            certificate.verify_directly_issued_by(self._certificate)
        except (FileNotFoundError, ValueError, TypeError, InvalidSignature):
            return None
        return certificate if private.public_key() == certificate.public_key() else None

    def _issue(
        self,
        name: str,
        names: Sequence[x509.GeneralName],
        usage: x509.ObjectIdentifier,
        days: float,
        renew: bool,
    ) -> Path:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(
            _name(name), self._certificate.subject, key.public_key(), timedelta(days=days)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), False)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), False)
        certificate = builder.sign(self._key, hashes.SHA256())
        return _write_pair(self._directory, name, certificate, key, renew)


def alternative_names(certificate: x509.Certificate) -> set[x509.GeneralName]:
    """Who it is for."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return set()
    return set(found.value)


def server_names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    """A server's, of host names and addresses."""
    return [_host(host) for host in hosts]


def client_names(uris: Sequence[str]) -> list[x509.GeneralName]:
    """A caller's, of its roles. Raises ValueError."""
    return [x509.UniformResourceIdentifier(uri) for uri in uris]


def _authority_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A new one, or that of an authority which died before it had a certificate."""
    if path.exists():
        return _load_key(path)
    key = ec.generate_private_key(ec.SECP256R1())
    _replace(path, _private_bytes(key), 0o600)
    return key


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def _private_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    lifetime: timedelta,
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    start = min(now - CLOCK_SLACK, now + lifetime - CLOCK_SLACK)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(now + lifetime)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write_pair(
    directory: Path,
    name: str,
    certificate: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    renew: bool,
) -> Path:
    write = _replace if renew else _write
    write(directory / f"{name}.key", _private_bytes(key), 0o600)
    path = directory / f"{name}.pem"
    write(path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    return path


def _replace(path: Path, data: bytes, mode: int) -> None:
    """Who reads meanwhile finds the old file or the new one."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    _write(new, data, mode)
    new.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _write(path: Path, data: bytes, mode: int) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError:
        raise CertificateExistsError(
            f"{path} is there already; choose another name, or move it away", file=path
        ) from None
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)
