"""Starts of a worker that go wrong, in this process."""

from pathlib import Path

import pytest

from worker.__main__ import main

__all__ = ["arguments", "refuses"]


def arguments(checkpoint: Path, data: Path, *overrides: str) -> list[str]:
    values = (
        f"model={checkpoint}",
        "listen=127.0.0.1:0",
        "security.development=true",
        f"data_directory={data}",
        "threads=1",
        "pool.page_bytes=16MiB",
        "drain_seconds=120",
        *overrides,
    )
    return [word for value in values for word in ("--set", value)]


def refuses(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    """What a start with `argv` says at its end; status 2."""
    capsys.readouterr()
    try:
        status: object = main(argv)
    except SystemExit as exit_:  # settings that cannot be used are told while they are read
        status = exit_.code
    assert status == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.strip()
