"""A trace: who asked for which blocks, in order. JSON lines, plain or gzip.

    {"meta": {"name": "a chat", "block_size": 512}}                         the first line, may lack
    {"timestamp": 0, "input_length": 1100, "hash_ids": [0, 1, 2], ...}      a request a line
    {"timestamp": 9, "input_length": 1100, "runs": [[0, 2], [7, 1]], ...}   or so: 0, 1, 7

An id names a block together with everything before it, so it follows the same id wherever it is; a
trace that contradicts itself is refused. `timestamp` is in milliseconds, `input_length` in tokens;
the last block is partly filled when the input does not end at a block's edge. Other keys are not
read.

Ids become small dense numbers here, in order of appearance: parents before children.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["NO_BLOCK", "Request", "Trace", "TraceError", "read_trace"]

BLOCK_TOKENS = 512
"""Where the trace does not say."""

NO_BLOCK = -1
"""The parent of a first block."""

REQUEST_BLOCKS_MAX = 1 << 20
"""A run of more is a damaged line, not a prompt."""

_WAY_OUT = "docs/replay.md has what a line of a trace holds"

_GZIP_MAGIC = b"\x1f\x8b"

Report = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


class TraceError(ValueError):
    """The trace cannot be read; the message names the file and the line, and what to do next."""

    reason = "TRACE_UNUSABLE"


@dataclass(frozen=True, slots=True)
class Request:
    time_seconds: float
    input_tokens: int
    blocks: list[int]
    """The full ones, first to last."""
    block_count: int
    """With the partly filled one, which is never cached."""


@dataclass(frozen=True, slots=True)
class Trace:
    name: str
    block_tokens: int
    requests: list[Request]
    parents: list[int]
    """Of each block, `NO_BLOCK` for first ones."""

    @property
    def unique_blocks(self) -> int:
        return len(self.parents)


def read_trace(path: Path, report: Report = lambda done, total: None) -> Trace:
    """Reads a whole trace. Raises TraceError."""
    reader = _Reader(path)
    try:
        with path.open("rb") as raw:
            total = path.stat().st_size
            packed = raw.read(2) == _GZIP_MAGIC
            raw.seek(0)
            lines = gzip.GzipFile(fileobj=raw) if packed else raw
            for line in _lines(lines):
                reader.take(line)
                if reader.line % 512 == 0:
                    report(raw.tell(), total)
    except (OSError, EOFError, zlib.error) as error:
        raise reader.unreadable(error) from None
    return reader.trace()


def _lines(source: BinaryIO | gzip.GzipFile) -> Iterator[bytes]:
    yield from source


class _Reader:
    """Takes line after line. Used once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._name = path.name.removesuffix(".gz").removesuffix(".jsonl")
        self._block_tokens = BLOCK_TOKENS
        self._numbers: dict[int, int] = {}
        self._parents: list[int] = []
        self._requests: list[Request] = []
        self.line = 0

    def error(self, problem: str, way_out: str = _WAY_OUT) -> TraceError:
        return TraceError(f"{self._path}, line {self.line}: {problem}; {way_out}")

    def unreadable(self, error: Exception) -> TraceError:
        """What the file system or the decompressor said."""
        said = (isinstance(error, OSError) and error.strerror) or str(error)
        if not self.line:
            return TraceError(
                f"{self._path} cannot be read: {said}; name a file of JSON lines, plain or gzip"
            )
        return self.error(f"cannot be read: {said}", "is the file whole? get it again")

    def trace(self) -> Trace:
        if not self._requests:
            raise TraceError(f"{self._path}: no request in it; {_WAY_OUT}")
        return Trace(self._name, self._block_tokens, self._requests, self._parents)

    def take(self, line: bytes) -> None:
        self.line += 1
        if not line.strip():
            return
        try:
            tree = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError:
            raise self.error("not UTF-8 text", "write the trace as UTF-8") from None
        except ValueError as error:
            raise self.error(f"not JSON: {error}") from None
        if not isinstance(tree, dict):
            raise self.error("not a JSON object")
        if "meta" in tree:
            self._take_meta(tree["meta"])
        else:
            self._requests.append(self._request(tree))

    def _take_meta(self, meta: Any) -> None:
        if self._requests:
            raise self.error('"meta" belongs before the first request')
        if not isinstance(meta, dict):
            raise self.error('"meta" is not an object')
        if isinstance(meta.get("name"), str):
            self._name = meta["name"]
        if "block_size" in meta:
            self._block_tokens = self._whole(meta, "block_size", least=1)

    def _request(self, tree: dict[str, Any]) -> Request:
        tokens = self._whole(tree, "input_length")
        time = tree.get("timestamp")
        if isinstance(time, bool) or not isinstance(time, int | float):
            raise self.error('"timestamp" is not a number')
        ids = self._ids(tree)
        if len(ids) > -(-tokens // self._block_tokens):
            raise self.error(f"{len(ids)} blocks are more than {tokens} tokens fill")
        blocks = self._numbered(ids)
        full = blocks[: tokens // self._block_tokens]
        return Request(time / 1000, tokens, full, len(ids))

    def _ids(self, tree: dict[str, Any]) -> list[int]:
        if ("hash_ids" in tree) == ("runs" in tree):
            raise self.error('wants "hash_ids" or "runs", one of them')
        if "runs" in tree:
            return self._run_ids(tree["runs"])
        ids = tree["hash_ids"]
        if not isinstance(ids, list) or any(type(each) is not int for each in ids):
            raise self.error('"hash_ids" is not a list of whole numbers')
        return ids

    def _run_ids(self, runs: Any) -> list[int]:
        ids: list[int] = []
        if not isinstance(runs, list):
            raise self.error('"runs" is not a list')
        for run in runs:
            pair = (
                isinstance(run, list) and len(run) == 2 and all(type(each) is int for each in run)
            )
            if not pair or not 0 < run[1] <= REQUEST_BLOCKS_MAX - len(ids):
                raise self.error(f"{run!r} in runs is not [first id, count]")
            ids.extend(range(run[0], run[0] + run[1]))
        return ids

    def _numbered(self, ids: list[int]) -> list[int]:
        numbers, parents = self._numbers, self._parents
        parent = NO_BLOCK
        blocks = []
        for each in ids:
            block = numbers.get(each)
            if block is None:
                block = numbers[each] = len(parents)
                parents.append(parent)
            elif parents[block] != parent:
                raise self.error(f"block {each} follows another block than before")
            blocks.append(block)
            parent = block
        return blocks

    def _whole(self, tree: dict[str, Any], key: str, least: int = 0) -> int:
        value = tree.get(key)
        if type(value) is not int or value < least:
            raise self.error(f'"{key}" is not a whole number from {least}')
        return value
