"""The audit log's writer: what it does when the log is not where, or not as, it left it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cache_service.audit.walk as walk_module
from cache_service.audit import writer as writer_module
from cache_service.audit.files import AuditFiles
from cache_service.audit.line import AuditEntry, Head, read_line
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
        def __init__(self, directory: Path, **more: Any) -> None:
            seen.append(directory)
            super().__init__(directory, **more)

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


# Moved away, removed, changed under the service.


def lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "000001.jsonl").read_text().splitlines()]


def move(log: Path) -> None:
    log.rename(log.with_name("kept"))


def move_files(log: Path) -> None:
    (log.with_name("kept")).mkdir()
    for path in log.iterdir():
        path.rename(log.with_name("kept") / path.name)


def remove_files(log: Path) -> None:
    for path in log.iterdir():
        path.unlink()


def empty(log: Path) -> None:
    os.truncate(log / "000001.jsonl", 0)


@pytest.mark.parametrize("away", [move, move_files, shutil.rmtree, remove_files, empty])
def test_a_log_moved_away_is_begun_anew_and_says_where_the_last_one_ended(
    tmp_path: Path, away: Callable[[Path], object]
) -> None:
    log = tmp_path / "audit"
    writer = written(log, 3)
    last = lines(log)[-1]
    away(log)
    writer.append(entry("afterwards"))
    head = writer.close()
    moved, after = lines(log)
    assert (moved["outcome"], moved["number"]) == ("moved", 1)
    assert moved["target"] == f"number=3 hash={last['hash']}"
    assert after["target"] == "afterwards"
    assert (walk(log).head, walk(log).problem) == (head, "")
    if (tmp_path / "kept").exists():
        assert (walk(tmp_path / "kept").head.number, walk(tmp_path / "kept").problem) == (3, "")


def test_a_copy_in_its_place_is_gone_on_with(tmp_path: Path) -> None:
    log = tmp_path / "audit"
    writer = written(log, 3)
    shutil.copytree(log, tmp_path / "copy")
    shutil.rmtree(log)
    (tmp_path / "copy").rename(log)
    writer.append(entry("afterwards"))
    writer.close()
    assert (walk(log).head.number, walk(log).problem) == (4, "")


def cut(log: Path) -> None:
    path = log / "000001.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))


def another(log: Path) -> None:
    shutil.rmtree(log)
    writer = AuditWriter(log)
    for number in range(4):
        writer.append(entry(f"another {number}"))
    writer.close()


@pytest.mark.parametrize(
    ("damage", "word"), [(cut, "ends with line 2"), (another, "line 3 is not the one")]
)
def test_a_log_without_what_was_written_is_refused_until_it_is_moved_away(
    tmp_path: Path, damage: Callable[[Path], object], word: str
) -> None:
    log = tmp_path / "audit"
    writer = written(log, 3)
    damage(log)
    for _ in range(2):
        with pytest.raises(AuditUnavailableError, match=word):
            writer.append(entry("refused"))
    move(log)
    writer.append(entry("afterwards"))
    writer.close()
    assert [line["outcome"] for line in lines(log)] == ["moved", "done"]


def test_the_last_of_several_files_removed_is_refused(tmp_path: Path) -> None:
    AuditFiles(tmp_path, 1).close()
    files = AuditFiles(tmp_path, 1)
    files.append(entry("1"))
    files.append(entry("2"))
    files.close()
    writer = AuditWriter(tmp_path)
    writer.append(entry("3"))
    (tmp_path / "000002.jsonl").unlink()
    with pytest.raises(AuditUnavailableError, match="ends with line 1"):
        writer.append(entry("refused"))
    writer.close()


def test_a_file_in_the_way_is_named_and_then_the_log_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "audit"
    writer = written(log, 3)
    move(log)
    log.write_text("in the way")
    with pytest.raises(AuditUnavailableError, match="File exists"):
        writer.append(entry("refused"))
    log.unlink()
    (tmp_path / "kept").rename(log)
    writer.append(entry("back"))
    writer.close()
    assert (walk(log).head.number, walk(log).problem) == (4, "")


# A disk that refuses.


def refuses(*_args: object) -> None:
    raise OSError(28, "No space left on device")


def test_after_an_error_the_files_are_opened_again_and_none_is_left_open(
    tmp_path: Path, openings: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    writer = written(tmp_path, 3)
    openings.clear()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuses)
        for _ in range(5):
            with pytest.raises(AuditUnavailableError, match="No space left on device"):
                writer.append(entry("refused"))
    writer.append(entry("afterwards"))
    assert len(openings) == 5
    writer.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert (walk(tmp_path).head.number, walk(tmp_path).problem) == (4, "")


def test_opening_again_reads_no_line_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = written(tmp_path, 3)
    read: list[bytes] = []

    def reading(line: bytes, head: Head) -> Head:
        read.append(line)
        return read_line(line, head)

    monkeypatch.setattr(walk_module, "read_line", reading)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuses)
        with pytest.raises(AuditUnavailableError):
            writer.append(entry("refused"))
    writer.append(entry("afterwards"))
    writer.close()
    assert not read


def test_a_whole_line_that_was_refused_is_cut_off_at_the_next_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = written(tmp_path, 3)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuses)
        patch.setattr(os, "ftruncate", refuses)
        with pytest.raises(AuditUnavailableError):
            writer.append(entry("refused"))
    assert len(lines(tmp_path)) == 4
    writer.append(entry("afterwards"))
    writer.close()
    assert [line["target"] for line in lines(tmp_path)] == ["n=0", "n=1", "n=2", "afterwards"]
    assert not walk(tmp_path).problem


def test_a_new_beginning_that_fails_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "audit"
    writer = written(log, 3)
    move(log)
    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", refuses)
        real = os.fsync
        refusals = iter([False, False, True, True])

        def third(fd: int) -> None:
            if next(refusals, False):
                refuses()
            real(fd)

        patch.setattr(os, "fsync", third)
        with pytest.raises(AuditUnavailableError):
            writer.append(entry("refused"))
    writer.append(entry("afterwards"))
    writer.close()
    assert [line["outcome"] for line in lines(log)] == ["moved", "done"]
    assert not walk(log).problem
