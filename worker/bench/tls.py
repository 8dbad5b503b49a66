"""Certificates of one run: an authority of its own, a service's and an engine's, both for loopback.

Their files go with the run. Main thread; blocks.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kvtier.certificates import CertificateAuthority
from kvtier.principals import Role, role_uri
from kvtier.tls import ClientTls, SecuritySettings

__all__ = ["BenchTls", "bench_tls"]


@dataclass(frozen=True, slots=True)
class BenchTls:
    """What each side shows, and whom it believes."""

    server: SecuritySettings
    client: ClientTls

    @property
    def service_settings(self) -> dict[str, object]:
        """For a service's command line."""
        files = self.server.model_dump(exclude={"development"})
        return {f"security.{name}": path for name, path in files.items()}


@contextmanager
def bench_tls() -> Iterator[BenchTls]:
    """Raises OSError."""
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-tls-") as name:
        authority = CertificateAuthority(Path(name), days=1)
        server = authority.issue_server("server", ["127.0.0.1"], days=1)
        client = authority.issue_client("engine", [role_uri(Role.ENGINE)], days=1)
        yield BenchTls(
            SecuritySettings(
                certificate_file=server,
                key_file=server.with_suffix(".key"),
                client_ca_file=authority.certificate_file,
            ),
            ClientTls(
                ca_file=authority.certificate_file,
                certificate_file=client,
                key_file=client.with_suffix(".key"),
            ),
        )
