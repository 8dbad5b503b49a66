"""Who calls: roles and scope, read from the certificate that the connection proved. Pure.

    kvtier://engine                   stores and restores blocks, reports usage
    kvtier://cache                    attests what leases served
    kvtier://tenant/ORG[/PROJECT..]   asks for inference and its own figures; the path is its scope
    kvtier://gateway                  asks for inference in the name of those it lets in
    kvtier://operator                 runs the services
    kvtier://biller                   reads usage, makes invoices
    kvtier://auditor                  reads figures, proves the ledger

The URIs are subject alternative names of the client's certificate; one certificate may hold
several. Path segments are UTF-8, percent-encoded in capital digits but for ASCII letters, digits
and "-._~". Invariant: one URI for each grant, and no other grants it. Any thread.
"""

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote, unquote

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

__all__ = ["EVERY_ROLE", "Principal", "Role", "grants", "principal_of", "role_uri"]

SCHEME = "kvtier"
NOT_AFTER_NEVER = float("inf")


class Role(enum.StrEnum):
    """What somebody is here to do. The value is the word in the URI."""

    ENGINE = "engine"
    CACHE = "cache"
    TENANT = "tenant"
    GATEWAY = "gateway"
    OPERATOR = "operator"
    BILLER = "biller"
    AUDITOR = "auditor"


EVERY_ROLE = frozenset(Role)

Scope = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody whom the transport has authenticated."""

    key: str
    """SHA-256 of the public key in hexadecimal: the same after the certificate was renewed. For a
    local connection, a word."""
    roles: frozenset[Role]
    scopes: frozenset[Scope] = frozenset()
    """The paths of its tenant URIs, organisation first."""
    not_after: float = NOT_AFTER_NEVER
    """When the certificate ends, in Unix seconds."""

    def may(self, roles: frozenset[Role]) -> bool:
        return not self.roles.isdisjoint(roles)


def grants(uris: Iterable[str]) -> tuple[frozenset[Role], frozenset[Scope]]:
    """The roles and tenant scopes that URIs name. What `role_uri` does not write grants nothing."""
    roles, scopes = set(), set()
    for uri in uris:
        try:
            role, path = _read(uri)
        except ValueError:
            continue
        roles.add(role)
        if path:
            scopes.add(path)
    return frozenset(roles), frozenset(scopes)


def _read(uri: str) -> tuple[Role, Scope]:
    """Raises ValueError for every URI but the one that is written for what it reads as."""
    word, *parts = uri.removeprefix(f"{SCHEME}://").split("/")
    role, path = Role(word), tuple(unquote(part, errors="strict") for part in parts)
    # A tenant without a scope could be anybody; the others have none.
    if role_uri(role, path) != uri or not all(path) or bool(path) != (role is Role.TENANT):
        raise ValueError("not exactly a role's URI")
    return role, path


def role_uri(role: Role, scope: Sequence[str] = ()) -> str:
    """The URI that grants `role`."""
    return "/".join((f"{SCHEME}://{role}", *(quote(part, safe="") for part in scope)))


def principal_of(certificate_pem: bytes) -> Principal:
    """The principal of a certificate that the transport has verified. Raises ValueError."""
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    roles, scopes = grants(_uris(certificate))
    return Principal(_fingerprint(certificate), roles, scopes, _seconds(certificate))


def _uris(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return names.value.get_values_for_type(x509.UniformResourceIdentifier)


def _fingerprint(certificate: x509.Certificate) -> str:
    key = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    digest = hashes.Hash(hashes.SHA256())
    digest.update(key)
    return digest.finalize().hex()


def _seconds(certificate: x509.Certificate) -> float:
    ends: datetime = certificate.not_valid_after_utc
    return ends.astimezone(UTC).timestamp()
