"""Traces: both forms, plain and gzip, and what is wrong with a line."""

import gzip
import json
from pathlib import Path

import pytest

from cache_service.replay.trace import NO_BLOCK, TraceError, read_trace

IDS = (
    b'{"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [10, 11, 12]}\n'
    b'{"timestamp": 2500, "input_length": 1024, "output_length": 5, "hash_ids": [10, 20]}\n'
)
RUNS = (
    b'{"meta": {"name": "the same in runs", "block_size": 512, "licence": "any"}}\n'
    b'{"timestamp": 0, "input_length": 1100, "session": 1, "runs": [[10, 3]]}\n'
    b"\n"
    b'{"timestamp": 2500.0, "input_length": 1024, "session": 2, "runs": [[10, 1], [20, 1]]}\n'
)


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("content", [IDS, RUNS])
@pytest.mark.parametrize("packed", [False, True])
def test_both_forms_read_the_same_packed_or_not(
    tmp_path: Path, content: bytes, packed: bool
) -> None:
    file = written(tmp_path / "chat.jsonl", gzip.compress(content) if packed else content)
    trace = read_trace(file)
    assert trace.block_tokens == 512
    assert trace.unique_blocks == 4
    assert trace.parents == [NO_BLOCK, 0, 1, 0]
    first, second = trace.requests
    assert (first.blocks, first.block_count, first.input_tokens) == ([0, 1], 3, 1100)
    assert (second.blocks, second.block_count, second.time_seconds) == ([0, 3], 2, 2.5)


def test_a_trace_is_named_by_its_first_line_or_its_file(tmp_path: Path) -> None:
    assert read_trace(written(tmp_path / "a.jsonl", RUNS)).name == "the same in runs"
    packed = written(tmp_path / "b.jsonl.gz", gzip.compress(IDS))
    assert read_trace(packed).name == "b"


def test_the_block_size_may_be_another(tmp_path: Path) -> None:
    content = (
        b'{"meta": {"block_size": 4}}\n{"timestamp": 0, "input_length": 9, "hash_ids": [1, 2]}'
    )
    trace = read_trace(written(tmp_path / "t", content))
    assert trace.block_tokens == 4
    assert trace.requests[0].blocks == [0, 1]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe", "not UTF-8 text; write"),
        (b"[1]", "not a JSON object"),
        (b'{"timestamp": 0, "input_length": 512}', '"hash_ids" or "runs"'),
        (b'{"timestamp": 0, "input_length": 512, "hash_ids": [1], "runs": []}', "one of them"),
        (b'{"timestamp": 0, "input_length": 512, "hash_ids": ["1"]}', "whole numbers"),
        (b'{"timestamp": 0, "input_length": 512, "hash_ids": [true]}', "whole numbers"),
        (b'{"timestamp": 0, "input_length": 512, "hash_ids": 1}', "whole numbers"),
        (b'{"timestamp": 0, "input_length": 512, "runs": 1}', "not a list"),
        (b'{"timestamp": 0, "input_length": 512, "runs": [[1]]}', "[first id, count]"),
        (b'{"timestamp": 0, "input_length": 512, "runs": [[1, 0]]}', "[first id, count]"),
        (b'{"timestamp": 0, "input_length": 512, "runs": [[1, 99999999999]]}', "[first id, count]"),
        (b'{"timestamp": 0, "input_length": 512, "hash_ids": [1, 2]}', "more than 512 tokens"),
        (b'{"timestamp": 0, "input_length": -1, "hash_ids": []}', '"input_length"'),
        (b'{"timestamp": 0, "input_length": 1.5, "hash_ids": []}', '"input_length"'),
        (b'{"timestamp": "0", "input_length": 512, "hash_ids": [1]}', '"timestamp"'),
        (b'{"input_length": 512, "hash_ids": [1]}', '"timestamp"'),
        (b'{"timestamp": 0, "input_length": 1024, "hash_ids": [11, 12]}', "another block than"),
        (b'{"meta": {}}', "before the first request"),
    ],
)
def test_a_bad_line_is_refused_by_its_number(tmp_path: Path, line: bytes, problem: str) -> None:
    file = written(tmp_path / "bad.jsonl", IDS + line + b"\n" + IDS)
    with pytest.raises(TraceError) as caught:
        read_trace(file)
    assert f"{file}, line 3: " in str(caught.value)
    assert problem in str(caught.value)


@pytest.mark.parametrize("meta", ["1", '{"block_size": 0}', '{"block_size": "512"}'])
def test_a_bad_first_line_is_refused(tmp_path: Path, meta: str) -> None:
    file = written(tmp_path / "bad.jsonl", f'{{"meta": {meta}}}\n'.encode() + IDS)
    with pytest.raises(TraceError, match="line 1: "):
        read_trace(file)


def test_a_damaged_gzip_file_is_refused_where_it_breaks(tmp_path: Path) -> None:
    lines = [
        json.dumps({"timestamp": i, "input_length": 512, "hash_ids": [i * 7919 % 10_007]})
        for i in range(3_000)
    ]
    whole = gzip.compress("\n".join(lines).encode())
    cut = written(tmp_path / "cut.jsonl.gz", whole[: len(whole) // 2])
    with pytest.raises(TraceError, match=r"line \d+: cannot be read"):
        read_trace(cut)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    with pytest.raises(TraceError, match=r"line \d+: "):
        read_trace(written(tmp_path / "flipped.jsonl.gz", bytes(flipped)))


def test_a_file_without_requests_or_without_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no request"):
        read_trace(written(tmp_path / "empty.jsonl", b""))
    with pytest.raises(TraceError, match="cannot be read"):
        read_trace(tmp_path / "absent.jsonl")
    with pytest.raises(TraceError, match="cannot be read"):
        read_trace(tmp_path)
