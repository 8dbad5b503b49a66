"""The audit log's files on a disk that refuses, in two hands, and when they are opened again."""

import os
from pathlib import Path

import pytest

from cache_service.audit.files import AuditFiles
from cache_service.audit.line import AuditEntry
from cache_service.audit.walk import AuditBrokenError, walk
from cache_service.errors import AuditLockedError


def entry(target: str) -> AuditEntry:
    return AuditEntry("2026-01-01T00:00:00.000Z", "key", ("operator",), "/m", target, "done")


def written(directory: Path, count: int, file_bytes_max: int = 1 << 20) -> AuditFiles:
    files = AuditFiles(directory, file_bytes_max)
    for number in range(count):
        files.append(entry(f"n={number}"))
    return files


class Disk:
    """The real calls, with some that refuse while told to."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.refuses: set[str] = set()
        self.calls: list[str] = []
        self._write = os.write
        for name in ("ftruncate", "fsync"):
            patch.setattr(os, name, self._refusing(name, getattr(os, name)))
        patch.setattr(os, "write", self._torn)

    def _refusing(self, name: str, real: "object") -> "object":
        def call(*args: object) -> object:
            self.calls.append(name)
            if name in self.refuses:
                raise OSError(5, f"{name} refused")
            return real(*args)  # type: ignore[operator]

        return call

    def _torn(self, fd: int, data: bytes) -> int:
        self.calls.append("write")
        return self._write(fd, data[: len(data) // 2] if "write" in self.refuses else data)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


# A line that failed is taken back.


def test_a_torn_line_is_taken_back_and_that_is_on_the_disk_too(tmp_path: Path, disk: Disk) -> None:
    files = written(tmp_path, 2)
    disk.refuses.add("write")
    disk.calls.clear()
    with pytest.raises(OSError, match="part of a line"):
        files.append(entry("torn"))
    assert disk.calls == ["write", "ftruncate", "fsync"]
    disk.refuses.clear()
    files.append(entry("kept"))
    files.close()
    assert (walk(tmp_path).head.number, walk(tmp_path).problem) == (3, "")


@pytest.mark.parametrize("refused", ["ftruncate", "fsync"])
def test_what_cannot_be_taken_back_ends_the_use_of_the_files(
    tmp_path: Path, disk: Disk, refused: str
) -> None:
    files = written(tmp_path, 2)
    disk.refuses |= {"write", refused}
    with pytest.raises(OSError, match="part of a line"):
        files.append(entry("torn"))
    disk.refuses.clear()
    with pytest.raises(OSError, match="opened again"):
        files.append(entry("would follow torn bytes"))
    files.close()
    written(tmp_path, 1).close()
    assert (walk(tmp_path).head.number, walk(tmp_path).problem) == (3, "")


# One service at a time.


def test_a_directory_in_use_is_refused_until_it_is_given_back(tmp_path: Path) -> None:
    files = written(tmp_path, 2)
    with pytest.raises(AuditLockedError, match="stop it, or give each service its own"):
        AuditFiles(tmp_path)
    files.append(entry("goes on"))
    files.close()
    written(tmp_path, 1).close()
    assert (walk(tmp_path).head.number, walk(tmp_path).problem) == (4, "")


def test_a_log_that_could_not_be_opened_is_not_kept_locked(tmp_path: Path) -> None:
    written(tmp_path, 1).close()
    path = tmp_path / "000001.jsonl"
    whole = path.read_bytes()
    path.write_bytes(b"junk\n")
    with pytest.raises(AuditBrokenError):
        AuditFiles(tmp_path)
    path.write_bytes(whole)
    written(tmp_path, 1).close()
    assert walk(tmp_path).head.number == 2


# What an opening reads.


def test_an_opening_reads_the_last_file_only_and_goes_on_from_its_end(tmp_path: Path) -> None:
    written(tmp_path, 20, file_bytes_max=1000).close()
    earlier = tmp_path / "000001.jsonl"
    good = earlier.read_bytes()
    earlier.write_bytes(good.replace(b"n=1", b"n=7"))
    written(tmp_path, 20, file_bytes_max=1000).close()
    assert "000001.jsonl, line 2 was changed" in walk(tmp_path).problem
    earlier.write_bytes(good)
    assert (walk(tmp_path).head.number, walk(tmp_path).problem) == (40, "")


def test_a_last_file_without_a_line_follows_the_one_before_it(tmp_path: Path) -> None:
    files = written(tmp_path, 4)
    head = files.head
    files.close()
    (tmp_path / "000002.jsonl").write_bytes(b'{"torn')
    files = AuditFiles(tmp_path)
    assert files.head == head
    files.append(entry("first of its file"))
    files.close()
    assert (walk(tmp_path).head.number, walk(tmp_path).problem) == (5, "")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"junk\n", "000003.jsonl, line 1 is not JSON"),
        (b'{"number":"x","previous":1}\n', "000003.jsonl, line 1"),
        (b"[]\n", "000003.jsonl, line 1"),
        (b"\n", "000003.jsonl, line 1"),
    ],
)
def test_a_last_file_that_does_not_hold_is_refused(
    tmp_path: Path, content: bytes, word: str
) -> None:
    written(tmp_path, 6, file_bytes_max=1000).close()
    (tmp_path / "000003.jsonl").write_bytes(content)
    with pytest.raises(AuditBrokenError, match=word):
        AuditFiles(tmp_path)


@pytest.mark.parametrize("missing", ["000001.jsonl", "000002.jsonl"])
def test_a_missing_file_is_found_by_its_name(tmp_path: Path, missing: str) -> None:
    written(tmp_path, 12, file_bytes_max=1000).close()
    (tmp_path / missing).unlink()
    with pytest.raises(AuditBrokenError, match=f"{missing} is missing"):
        AuditFiles(tmp_path)
