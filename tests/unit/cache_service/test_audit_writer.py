"""The audit log's writer: what it does when the log is not where, or not as, it left it."""

from pathlib import Path

import pytest

from cache_service.audit import writer as writer_module
from cache_service.audit.files import AuditFiles
from cache_service.audit.line import AuditEntry
from cache_service.audit.walk import walk
from cache_service.audit.writer import AuditWriter
from cache_service.errors import AuditUnavailableError


def entry(target: str) -> AuditEntry:
    return AuditEntry("2026-01-01T00:00:00.000Z", "key", ("operator",), "/m", target, "done")


def written(directory: Path, count: int) -> AuditWriter:
    writer = AuditWriter(directory)
    for number in range(count):
        writer.append(entry(f"n={number}"))
    return writer


@pytest.fixture
def openings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The real files, and where they were opened."""
    seen: list[Path] = []

    class Seen(AuditFiles):
        def __init__(self, directory: Path) -> None:
            seen.append(directory)
            super().__init__(directory)

    monkeypatch.setattr(writer_module, "AuditFiles", Seen)
    return seen


def test_a_broken_chain_is_read_once_until_its_files_change(
    tmp_path: Path, openings: list[Path]
) -> None:
    written(tmp_path, 3).close()
    path = tmp_path / "000001.jsonl"
    good = path.read_bytes()
    path.write_bytes(good.replace(b"n=1", b"n=7"))
    openings.clear()
    writer = AuditWriter(tmp_path)
    for _ in range(5):
        with pytest.raises(AuditUnavailableError, match=r"000001\.jsonl, line 2 was changed"):
            writer.append(entry("refused"))
    assert len(openings) == 1
    path.write_bytes(good)
    writer.append(entry("mended"))
    writer.close()
    assert (walk(tmp_path).head.number, walk(tmp_path).problem) == (4, "")
