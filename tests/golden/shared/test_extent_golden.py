"""Extents as they lie in engines: these bytes are read for ever.."""

import json
from pathlib import Path

import pytest

from kvtier.keys import BlockHash, NamespaceId, payload_checksum
from storage.shared.extent import ExtentBlock, ExtentHead, pack, unpack
from storage.shared.sealing import Sealing

GOLDEN = Path(__file__).with_name("extents.json")
HEAD = ExtentHead(NamespaceId(b"n" * 32), 3, 24)
PARENT = BlockHash(b"p" * 32)
NAMES = [BlockHash(bytes([65 + number]) * 32) for number in range(4)]
PAYLOADS = [memoryview(bytes(range(number, number + 24))) for number in range(4)]
BLOCKS = [
    ExtentBlock(name, payload_checksum(name, payload), until, end, owner)
    for name, payload, until, end, owner in zip(
        NAMES,
        PAYLOADS,
        (2**32 - 1, 2**32 - 1, 1_900_000_000, 1_900_000_001),
        (False, True, False, True),
        ("", "acme", "acme/search", "acme/search"),
        strict=True,
    )
]
KEY = bytes(range(32))


def test_an_extent_in_clear_is_these_bytes() -> None:
    golden = json.loads(GOLDEN.read_text())
    assert bytes(pack(HEAD, PARENT, BLOCKS, PAYLOADS, None)).hex() == golden["clear"]


@pytest.mark.parametrize(("kind", "sealing"), [("clear", None), ("sealed", Sealing([KEY]))])
def test_these_bytes_are_this_extent(kind: str, sealing: Sealing | None) -> None:
    raw = memoryview(bytes.fromhex(json.loads(GOLDEN.read_text())[kind]))
    into = {number: memoryview(bytearray(24)) for number in range(4)}
    assert unpack(raw, HEAD, dict(enumerate(NAMES)), 4, into, sealing) == BLOCKS
    assert [bytes(each) for each in into.values()] == [bytes(each) for each in PAYLOADS]
