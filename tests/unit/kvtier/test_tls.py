"""What is refused before a connection is made: addresses in clear, files that do not do."""

import os
from pathlib import Path

import pytest

from kvtier.certificates import CertificateAuthority, CertificateExistsError
from kvtier.settings import SettingsError, load
from kvtier.tls import (
    ClientTls,
    SecuritySettings,
    TlsFileError,
    TlsRequiredError,
    channel_credentials,
    check_listeners,
    server_credentials,
)
from tests.pki import Pki

LOOPBACK = ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1"]
OTHERS = ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "example.org:1", "localhost.example.org:1", ":1"]


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "tls")


@pytest.mark.parametrize("address", LOOPBACK)
def test_loopback_in_clear_needs_the_development_setting(address: str) -> None:
    check_listeners([address], SecuritySettings(development=True))
    with pytest.raises(TlsRequiredError, match=r"security\.development=true"):
        check_listeners([address], SecuritySettings())


@pytest.mark.parametrize("address", OTHERS)
def test_no_setting_opens_another_address_in_clear(address: str) -> None:
    for security in (SecuritySettings(), SecuritySettings(development=True)):
        with pytest.raises(TlsRequiredError, match=r"security\.certificate_file"):
            check_listeners([address], security)
    with pytest.raises(TlsRequiredError, match="in clear"):
        channel_credentials(address, ClientTls())


def test_a_unix_socket_needs_nothing_and_tls_opens_everything(pki: Pki) -> None:
    check_listeners(["unix:/run/x.sock"], SecuritySettings())
    check_listeners([*LOOPBACK, *OTHERS], pki.security)
    assert channel_credentials("unix:/run/x.sock", ClientTls()) is None


def test_files_come_together_or_not_at_all() -> None:
    for key in ("certificate_file", "key_file", "client_ca_file"):
        with pytest.raises(SettingsError, match="as well, or none of"):
            load(SecuritySettings, env_prefix="X_", overrides=[f"{key}=a.pem"], environment={})


def refused(security: SecuritySettings, path: Path, word: str) -> None:
    with pytest.raises(TlsFileError) as caught:
        server_credentials(security)
    assert str(path) in str(caught.value)
    assert word in str(caught.value)


def test_a_file_that_does_not_do_is_named(pki: Pki, tmp_path: Path) -> None:
    good = pki.security
    missing, wrong = tmp_path / "missing.pem", tmp_path / "wrong.pem"
    wrong.write_text("not PEM")
    for name in ("certificate_file", "key_file", "client_ca_file"):
        refused(good.model_copy(update={name: missing}), missing, "cannot read")
        refused(good.model_copy(update={name: wrong}), wrong, "PEM")


def test_a_key_of_another_certificate_is_refused(pki: Pki) -> None:
    other = pki.client_file().with_suffix(".key")
    refused(pki.security.model_copy(update={"key_file": other}), other, "is not the key of")


def test_a_key_that_everybody_can_read_is_refused(pki: Pki) -> None:
    key = pki.server_file.with_suffix(".key")
    assert key.stat().st_mode & 0o777 == 0o600
    os.chmod(key, 0o644)
    refused(pki.security, key, "chmod 600")


def test_an_expired_certificate_is_refused_at_the_start(pki: Pki) -> None:
    old = pki.authority.issue_server("old", ["127.0.0.1"], days=-1)
    update = {"certificate_file": old, "key_file": old.with_suffix(".key")}
    refused(pki.security.model_copy(update=update), old, "expired at")


def test_an_authority_is_kept_and_nothing_is_overwritten(pki: Pki) -> None:
    again = CertificateAuthority(pki.directory)
    with pytest.raises(CertificateExistsError, match=r"server\.key"):
        again.issue_server("server", ["127.0.0.1"])
    more = again.issue_server("more", ["127.0.0.1"])
    update = {"certificate_file": more, "key_file": more.with_suffix(".key")}
    assert server_credentials(pki.security.model_copy(update=update)) is not None
