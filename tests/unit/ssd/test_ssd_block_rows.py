"""Index rows become columns when they match their checksum, and are named when they do not."""

import pytest

from storage.codec import Codec
from storage.ssd.block_rows import BLOCK_KEY, BlockRowReader, block_row
from storage.ssd.format import RecordHeader
from storage.tier import PAGE_BYTES, SegmentId, SsdLocation
from tests.ssd.blocks import block

COUNT = 12


def entry(number: int) -> tuple[bytes, bytes]:
    record = block(f"block {number}").record
    location = SsdLocation(
        SegmentId(number % 3), 2, number * PAGE_BYTES, record.payload_bytes, record.checksum, 77
    )
    block_hash, value = block_row(RecordHeader(record, location, number, Codec.ZSTD))
    return BLOCK_KEY + block_hash, value


ENTRIES = [entry(number) for number in range(COUNT)]


@pytest.mark.parametrize("expected_count", [0, 5, COUNT, 100])
@pytest.mark.parametrize("at_a_time", [1, 5, COUNT])
def test_whole_rows_are_columns_in_their_order(expected_count: int, at_a_time: int) -> None:
    reader = BlockRowReader(expected_count)
    for start in range(0, COUNT, at_a_time):
        reader.take(ENTRIES[start : start + at_a_time])
    rows = reader.rows()
    assert len(rows) == COUNT
    assert rows.hashes.tolist() == [key[1:] for key, _ in ENTRIES]
    assert rows["sequence"].tolist() == list(range(COUNT))
    assert rows["offset"].tolist() == [number * PAGE_BYTES for number in range(COUNT)]
    assert rows["segment_id"].tolist() == [number % 3 for number in range(COUNT)]
    assert rows["parent"].tolist() == [bytes(32)] * COUNT
    assert reader.damaged_hashes == []


DAMAGE = {
    "a bit of the key": lambda key, value: (key[:-1] + bytes([key[-1] ^ 1]), value),
    "a bit of the fields": lambda key, value: (key, value[:70] + b"?" + value[71:]),
    "a bit of the checksum": lambda key, value: (key, value[:-1] + bytes([value[-1] ^ 1])),
    "a short value": lambda key, value: (key, value[:-1]),
    "a long value": lambda key, value: (key, value + b"\0"),
    "no value": lambda key, value: (key, b""),
    "a short key": lambda key, value: (key[:-1], value),
    "another's value": lambda key, value: (key, ENTRIES[0][1]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_row_is_left_out_alone(damage: str) -> None:
    entries = list(ENTRIES)
    entries[4] = DAMAGE[damage](*entries[4])
    reader = BlockRowReader(COUNT)
    reader.take(entries)
    assert reader.rows()["sequence"].tolist() == [n for n in range(COUNT) if n != 4]
    assert reader.damaged_hashes == [entries[4][0][1:]]


def test_two_wrong_lengths_that_add_up_are_both_found() -> None:
    entries = list(ENTRIES)
    entries[2] = (entries[2][0], entries[2][1][:-8])
    entries[7] = (entries[7][0], entries[7][1] + bytes(8))
    reader = BlockRowReader(COUNT)
    reader.take(entries)
    assert reader.rows()["sequence"].tolist() == [n for n in range(COUNT) if n not in (2, 7)]
    assert reader.damaged_hashes == [entries[2][0][1:], entries[7][0][1:]]
