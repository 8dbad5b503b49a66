"""`kvtier certificates make`: makes what is missing, keeps what holds, and keeps its key apart."""

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from typer.testing import CliRunner

from kvtier.certificates import CertificateAuthority
from kvtier.cli.certificates import app

WORDS = ["--server", "gateway=gateway,127.0.0.1", "--client", "engine=kvtier://engine"]


def made(directory: Path, *words: str) -> dict[str, str]:
    done = CliRunner().invoke(app, ["make", str(directory), *WORDS, *words, "--json"])
    assert done.exit_code == 0, done.output
    answer: dict[str, Any] = json.loads(done.stdout)
    return {each["name"]: each["done"] for each in answer["certificates"]}


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_what_is_there_and_holds_is_kept(tmp_path: Path) -> None:
    assert made(tmp_path) == {"gateway": "made", "engine": "made"}
    before = files(tmp_path)
    assert made(tmp_path) == {"gateway": "kept", "engine": "kept"}
    assert files(tmp_path) == before
    names = x509.load_pem_x509_certificate(before["gateway.pem"]).extensions
    hosts = names.get_extension_for_class(x509.SubjectAlternativeName).value
    assert hosts.get_values_for_type(x509.DNSName) == ["gateway"]


def test_what_is_about_to_end_is_renewed_with_a_new_key(tmp_path: Path) -> None:
    made(tmp_path, "--days", "10")
    before = files(tmp_path)
    assert made(tmp_path) == {"gateway": "renewed", "engine": "renewed"}
    after = files(tmp_path)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"gateway.pem", "gateway.key", "engine.pem", "engine.key"}
    assert made(tmp_path) == {"gateway": "kept", "engine": "kept"}


@pytest.mark.parametrize("harm", ["gateway.key", "gateway.pem"])
def test_half_of_a_pair_or_anothers_is_made_anew(tmp_path: Path, harm: str) -> None:
    made(tmp_path)
    other = CertificateAuthority(tmp_path / "other").issue_server("gateway", ["gateway"])
    foreign = other if harm.endswith(".pem") else other.with_suffix(".key")
    (tmp_path / harm).write_bytes(foreign.read_bytes())
    assert made(tmp_path)["gateway"] == "made"
    (tmp_path / harm).write_text("no PEM at all")
    assert made(tmp_path) == {"gateway": "made", "engine": "kept"}
    (tmp_path / harm).unlink()
    assert made(tmp_path) == {"gateway": "made", "engine": "kept"}


def test_other_names_are_another_certificate(tmp_path: Path) -> None:
    made(tmp_path)
    more = ["--server", "gateway=gateway,127.0.0.1,gateway.example,::1"]
    words = [*more, "--client", "engine=kvtier://engine"]
    for expected in ("renewed", "kept"):
        done = CliRunner().invoke(app, ["make", str(tmp_path), *words, "--json"])
        listed = {each["name"]: each["done"] for each in json.loads(done.stdout)["certificates"]}
        assert listed == {"gateway": expected, "engine": "kept"}
    names = x509.load_pem_x509_certificate(files(tmp_path)["gateway.pem"]).extensions
    hosts = names.get_extension_for_class(x509.SubjectAlternativeName).value
    assert hosts.get_values_for_type(x509.DNSName) == ["gateway", "gateway.example"]
    other = ["--client", "engine=kvtier://cache"]
    done = CliRunner().invoke(app, ["make", str(tmp_path), *more, *other, "--json"])
    listed = {each["name"]: each["done"] for each in json.loads(done.stdout)["certificates"]}
    assert listed == {"gateway": "kept", "engine": "renewed"}


def test_an_authority_that_died_between_its_files_is_finished(tmp_path: Path) -> None:
    made(tmp_path)
    key = files(tmp_path)["ca.key"]
    (tmp_path / "ca.pem").unlink()
    (tmp_path / "ca.pem.new").write_text("half of it")
    assert made(tmp_path) == {"gateway": "kept", "engine": "kept"}
    assert files(tmp_path)["ca.key"] == key
    assert "ca.pem.new" not in files(tmp_path)


def test_half_a_file_of_an_authority_is_no_authority(tmp_path: Path) -> None:
    (tmp_path / "ca.key.new").write_text("half of it")
    assert made(tmp_path) == {"gateway": "made", "engine": "made"}
    assert "ca.key.new" not in files(tmp_path)


def test_the_authoritys_key_does_not_go_out(tmp_path: Path) -> None:
    authority, out = tmp_path / "authority", tmp_path / "out"
    made(authority, "--out", str(out))
    assert sorted(files(authority)) == ["ca.key", "ca.pem"]
    expected = ["ca.pem", "engine.key", "engine.pem", "gateway.key", "gateway.pem"]
    assert sorted(files(out)) == expected
    assert files(out)["ca.pem"] == files(authority)["ca.pem"]
    assert all(path.stat().st_mode & 0o077 == 0 for path in out.glob("*.key"))
    assert made(authority, "--out", str(out)) == {"gateway": "kept", "engine": "kept"}


@pytest.mark.parametrize("word", ["gateway", "=host", "gateway=", "a/b=host", "ca=host"])
def test_a_word_that_is_no_certificate_is_refused(tmp_path: Path, word: str) -> None:
    done = CliRunner().invoke(app, ["make", str(tmp_path), "--server", word])
    assert done.exit_code == 1
    assert "is not NAME=HOST" in done.output
