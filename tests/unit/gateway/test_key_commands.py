"""`kvtier keys` on a file of its own: what it prints, once, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gateway.key_commands import app
from gateway.key_file import KeyFile

FAR = 2**33


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def keys(file: Path, *words: str) -> tuple[int, str, str]:
    ended = CliRunner().invoke(app, [*words, "--file", str(file)])
    return ended.exit_code, ended.stdout, ended.stderr


def data(file: Path, *words: str) -> Any:
    code, out, _ = keys(file, *words, "--json")
    assert code == 0
    assert out.count("\n") == 1
    return json.loads(out)


def test_a_new_key_is_alone_on_standard_output_and_opens(file: Path) -> None:
    code, out, err = keys(file, "create", "--organisation", "acme", "--name", "ci")
    assert code == 0
    text = out.removesuffix("\n")
    key = KeyFile(file).read().find(text, FAR)
    assert key is not None
    assert str(key.path) == "acme/default"
    assert key.key_id in err
    assert text not in err
    _, listed, _ = keys(file, "list")
    assert key.key_id in listed
    assert "ci" in listed
    assert text[-43:] not in listed


def test_a_key_says_all_that_it_was_given(file: Path) -> None:
    words = ("--organisation", "acme", "--project", "p", "--user", "ann")
    made = data(file, "create", *words, "--service-class", "a", "--service-class", "b")
    (told,) = data(file, "list")["keys"]
    assert told["path"] == "acme/p/ann"
    assert told["service_classes"] == ["a", "b"]
    assert "api_key" not in told
    assert made["api_key"].startswith(f"sk-kvtier-{told['key_id']}-")


def test_rotation_and_revocation_from_the_command_line(file: Path) -> None:
    made = data(file, "create", "--organisation", "acme")
    again = data(file, "rotate", made["key_id"], "--overlap", "1h")
    assert again["key_id"] == made["key_id"]
    assert again["secret_count"] == 2
    last = data(file, "rotate", made["key_id"], "--overlap", "0")
    ring = KeyFile(file).read()
    assert last["secret_count"] == 1
    assert ring.find(last["api_key"], FAR) is not None
    assert ring.find(made["api_key"], 0) is None
    assert ring.find(again["api_key"], 0) is None
    assert data(file, "revoke", made["key_id"])["valid"] is False
    assert KeyFile(file).read().find(last["api_key"], FAR) is None
    assert data(file, "list")["keys"][0]["state"].startswith("revoked ")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("create", "--organisation", "a/b"), 1, "KEY_CHANGE"),
        (("create", "--organisation", "a", "--user", "u u"), 1, "KEY_CHANGE"),
        (("create",), 2, "--organisation"),
        (("rotate", "nobody"), 1, "kvtier keys list"),
        (("revoke", "nobody"), 1, "kvtier keys list"),
        (("rotate", "x", "--overlap", "soon"), 2, "--overlap"),
        (("rotate", "x", "--overlap", "999d"), 2, "--overlap"),
        (("rotate", "x", "--overlap", "-5"), 2, "--overlap"),
    ],
)
def test_what_cannot_be_is_refused(
    file: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    ended, out, err = keys(file, *words)
    assert (ended, out) == (code, "")
    assert said in err


def test_a_file_that_others_can_read_is_told_and_not_used(file: Path) -> None:
    keys(file, "create", "--organisation", "acme")
    file.chmod(0o644)
    code, _, err = keys(file, "list")
    assert code == 1
    assert "chmod 600" in err


def test_without_keys_the_list_says_how_to_make_one(file: Path) -> None:
    assert "kvtier keys create" in keys(file, "list")[1]
    assert data(file, "list")["keys"] == []
