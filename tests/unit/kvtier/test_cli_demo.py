"""`kvtier demo` says at once, before it makes or starts anything, what cannot work."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kvtier.cli.main import build


def demo(tmp_path: Path, *arguments: str) -> Any:
    model = tmp_path / "model"
    result = CliRunner().invoke(build(), ["demo", "--model-cache", str(model), *arguments])
    assert result.exit_code == 2
    assert not model.exists()
    return result


@pytest.mark.parametrize("content", [None, b"caf\xe9"])
def test_a_document_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    document = tmp_path / "text"
    if content is not None:
        document.write_bytes(content)
    told = demo(tmp_path, "--document", str(document)).output
    assert ("cannot read" if content is None else "not UTF-8") in told


def test_a_place_for_the_json_that_does_not_exist(tmp_path: Path) -> None:
    assert "no directory" in demo(tmp_path, "--json", str(tmp_path / "gone" / "demo.json")).output
