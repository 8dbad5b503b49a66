"""The audit log: what was answered for is there, and a walk finds whatever was done to it."""

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from cache_service.audit.commands import audit_app
from cache_service.audit.files import AuditFiles
from cache_service.audit.line import AuditEntry, BrokenLineError, Head, line_of, read_line
from cache_service.audit.log import AuditLog
from cache_service.audit.refusals import REFUSED_MAX, RefusalTable, Refused
from cache_service.audit.walk import AuditBrokenError, walk
from cache_service.errors import AuditUnavailableError
from kvtier.principals import Principal, Role
from kvtier.v1 import cache_pb2 as pb

OPERATOR = Principal("k" * 64, frozenset({Role.OPERATOR}))


def entry(target: str) -> AuditEntry:
    return AuditEntry("2026-01-01T00:00:00.000Z", "key", ("operator",), "/m", target, "done")


def written(directory: Path, count: int, file_bytes_max: int = 1 << 20) -> AuditFiles:
    files = AuditFiles(directory, file_bytes_max)
    for number in range(count):
        files.append(entry(f"n={number}"))
    return files


@given(st.text(max_size=100), st.integers(0, 10**9))
def test_a_line_reads_back_and_any_changed_byte_shows(target: str, place: int) -> None:
    line, head = line_of(entry(target), Head())
    assert read_line(line, Head()) == head
    at = place % (len(line) - 1)
    for changed in (line[at] ^ 1, line[at] ^ 0x20):
        bad = line[:at] + bytes([changed]) + line[at + 1 :]
        with pytest.raises(BrokenLineError):
            read_line(bad, Head())


def test_the_chain_goes_on_over_files_and_starts(tmp_path: Path) -> None:
    written(tmp_path, 20, file_bytes_max=1000).close()
    written(tmp_path, 20, file_bytes_max=1000).close()
    walked = walk(tmp_path)
    assert (walked.head.number, walked.problem) == (40, "")
    assert walked.file_count == 10
    assert [p.stat().st_mode & 0o777 for p in tmp_path.iterdir()] == [0o600] * walked.file_count


Damage = Callable[[list[bytes]], list[bytes]]


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda lines: [*lines[:3], *lines[4:]], "line 4 has number 5, not 4"),
        (lambda lines: lines[1:], "line 1 has number 2, not 1"),
        (lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]], "line 3 has number"),
        (lambda lines: [lines[0], lines[1].replace(b"n=1", b"n=7"), *lines[2:]], "was changed"),
        (lambda lines: [lines[0], b"junk\n", *lines[2:]], "line 2 is not JSON"),
        (lambda lines: [*lines[:5], lines[4], *lines[5:]], "line 6 has number 5"),
        (lambda lines: [lines[0], lines[1].replace(b",", b", ", 1), *lines[2:]], "not written as"),
    ],
)
def test_damage_is_found_where_it_is(tmp_path: Path, damage: Damage, word: str) -> None:
    written(tmp_path, 8).close()
    path = tmp_path / "000001.jsonl"
    path.write_bytes(b"".join(damage(path.read_bytes().splitlines(keepends=True))))
    problem = walk(tmp_path).problem
    assert problem.startswith("000001.jsonl, line ")
    assert word in problem
    with pytest.raises(AuditBrokenError, match=r"000001\.jsonl"):
        AuditFiles(tmp_path)


def test_a_line_forged_with_a_right_hash_of_its_own_does_not_follow(tmp_path: Path) -> None:
    written(tmp_path, 3).close()
    path = tmp_path / "000001.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    forged, _ = line_of(entry("n=9"), Head(1, json.loads(lines[0])["hash"]))
    path.write_bytes(lines[0] + forged + lines[2])
    assert "line 3 does not follow the line before it" in walk(tmp_path).problem


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    written(tmp_path, 20, file_bytes_max=1000).close()
    (tmp_path / "000002.jsonl").unlink()
    assert walk(tmp_path).problem == "000002.jsonl is missing"


def test_a_head_kept_elsewhere_finds_a_cut_end(tmp_path: Path) -> None:
    files = written(tmp_path, 5)
    head = files.head.hash
    files.close()
    assert walk(tmp_path, head).had_head
    path = tmp_path / "000001.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    walked = walk(tmp_path, head)
    assert (walked.problem, walked.had_head) == ("", False)


def test_a_line_that_a_crash_tore_is_cut_off(tmp_path: Path) -> None:
    written(tmp_path, 3).close()
    with (tmp_path / "000001.jsonl").open("ab") as file:
        file.write(b'{"count":1')
    written(tmp_path, 1).close()
    assert walk(tmp_path).head.number == 4
    assert not walk(tmp_path).problem


def test_a_full_disk_adds_nothing_and_later_lines_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = written(tmp_path, 2)
    real = os.write

    def full(_fd: int, _line: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        files.append(entry("lost"))
    monkeypatch.setattr(os, "write", real)
    files.append(entry("kept"))
    files.close()
    walked = walk(tmp_path)
    assert (walked.head.number, walked.problem) == (3, "")


async def test_a_call_is_done_failed_or_stopped(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    request = pb.VerifyBlocksRequest(bytes_per_second=5)
    async with log.call(OPERATOR, "/m", request):
        pass
    with pytest.raises(AuditUnavailableError):
        async with log.call(OPERATOR, "/m", request):
            raise AuditUnavailableError("x")

    async def waits() -> None:
        async with log.call(OPERATOR, "/m", request):
            await asyncio.Event().wait()

    task = asyncio.ensure_future(waits())
    while (tmp_path / "000001.jsonl").read_bytes().count(b"\n") != 5:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await log.close(10)
    lines = [json.loads(line) for line in (tmp_path / "000001.jsonl").read_text().splitlines()]
    outcomes = [line["outcome"] for line in lines]
    assert outcomes == ["begun", "done", "begun", "failed", "begun", "stopped"]
    assert lines[3]["reason"] == "AUDIT_UNAVAILABLE"
    assert {line["target"] for line in lines} == {"bytes_per_second=5"}


def test_what_the_command_says(tmp_path: Path) -> None:
    nothing = CliRunner().invoke(audit_app, ["verify", str(tmp_path)])
    assert (nothing.exit_code, nothing.stdout) == (2, "")
    files = written(tmp_path, 3)
    head = files.head.hash
    files.close()
    good = CliRunner().invoke(audit_app, ["verify", str(tmp_path), "--head", head])
    assert (good.exit_code, good.stdout) == (0, f"3 lines hold; head {head}\n")
    absent = CliRunner().invoke(audit_app, ["verify", str(tmp_path), "--head", "0" * 64])
    assert absent.exit_code == 1
    path = tmp_path / "000001.jsonl"
    path.write_bytes(path.read_bytes().replace(b"n=1", b"n=4"))
    bad = CliRunner().invoke(audit_app, ["verify", str(tmp_path), "--json"])
    said = json.loads(bad.stdout)
    assert (bad.exit_code, said["verified"], said["line_count"]) == (1, False, 1)
    assert "000001.jsonl, line 2 was changed" in said["problem"]


async def test_torn_bytes_that_stay_do_not_break_the_chain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = AuditLog(tmp_path)
    request = pb.VerifyBlocksRequest()
    async with log.call(OPERATOR, "/m", request):
        pass
    real = os.write

    def refuses(*_args: object) -> None:
        raise OSError(5, "refused")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, line: real(fd, line[:9]))
        patch.setattr(os, "ftruncate", refuses)
        with pytest.raises(AuditUnavailableError):
            async with log.call(OPERATOR, "/m", request):
                pass
    async with log.call(OPERATOR, "/m", request):
        pass
    await log.close(10)
    assert (walk(tmp_path).head.number, walk(tmp_path).problem) == (4, "")


@given(st.lists(st.tuples(st.integers(0, 2 * REFUSED_MAX), st.booleans())))
def test_no_refusal_is_lost_and_the_table_is_bounded(steps: list[tuple[int, bool]]) -> None:
    table, added, written = RefusalTable(), 0, 0
    for number, taken in steps:
        table.add(Refused(f"{number}", (), "/m", "R"))
        added += 1
        if taken:
            found = table.take()
            assert len(found) <= REFUSED_MAX + 1
            half = len(found) // 2
            written += sum(count for _, count in found[:half])
            table.put_back(found[half:])
    assert written + table.total == added
