"""Segment and record headers: what was packed parses, anything else does not."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import FormatTooNewError
from storage.ssd.format import (
    BadPageError,
    Marker,
    RawPages,
    RecordHeader,
    SegmentHeader,
    pack_marker,
    pack_record_header,
    pack_segment_header,
    parse_marker,
    parse_record_header,
    parse_segment_header,
    parse_segment_name,
    record_bytes,
)
from storage.tier import PAGE_BYTES, BlockRecord, SegmentId, SsdLocation
from tests.ssd.blocks import block

SEGMENT = SegmentHeader(SegmentId(3), 7, 1 << 20, seed=0xABCDEF)
OFFSET = 2 * PAGE_BYTES


def header(segment: SegmentHeader = SEGMENT, offset: int = OFFSET) -> RecordHeader:
    record = block("a").record
    location = SsdLocation(
        segment.segment_id,
        segment.generation,
        offset,
        record.payload_bytes,
        record.checksum,
        record.payload_bytes,
    )
    return RecordHeader(record, location, sequence=99)


def test_a_record_header_parses_as_it_was_packed() -> None:
    page = pack_record_header(header(), SEGMENT.seed)
    assert len(page) == PAGE_BYTES
    assert parse_record_header(memoryview(page), SEGMENT, OFFSET) == header()


def test_only_the_generation_tells_a_stale_record_from_a_new_one() -> None:
    """Same segment, offset, seed and checksum seed: nothing but the generation differs."""
    stale = SegmentHeader(SEGMENT.segment_id, 6, SEGMENT.segment_bytes, SEGMENT.seed)
    page = memoryview(pack_record_header(header(stale), stale.seed))
    assert parse_record_header(page, stale, OFFSET) == header(stale)
    with pytest.raises(BadPageError, match="generation 6, not 7"):
        parse_record_header(page, SEGMENT, OFFSET)


def test_a_record_made_without_knowing_the_seed_is_refused() -> None:
    page = memoryview(pack_record_header(header(), seed=SEGMENT.seed + 1))
    with pytest.raises(BadPageError, match="checksum"):
        parse_record_header(page, SEGMENT, OFFSET)


def a_row(count: int) -> tuple[RawPages, memoryview, list[tuple[BlockRecord, SsdLocation, None]]]:
    """Headers of records in a row as they come from the disk, and what is wanted of them."""
    memory, wanted = memoryview(bytearray(count * PAGE_BYTES)), []
    for at in range(count):
        here = header(offset=OFFSET + at * PAGE_BYTES)._replace(sequence=100 + at)
        memory[at * PAGE_BYTES :][:PAGE_BYTES] = pack_record_header(here, SEGMENT.seed)
        wanted.append((here.record, here.location, None))
    return RawPages(memory), memory, wanted


@given(st.integers(0, 3 * PAGE_BYTES - 1), st.integers(1, 255))
def test_a_row_of_headers_holds_the_records_wanted_and_no_changed_byte(at: int, bits: int) -> None:
    pages, memory, wanted = a_row(3)
    assert pages.hold(SEGMENT, wanted)
    assert pages.hold(SEGMENT, wanted[:1])
    memory[at] ^= bits
    assert not pages.hold(SEGMENT, wanted)


def test_a_row_of_headers_is_not_that_of_another_order_segment_or_record() -> None:
    pages, _, wanted = a_row(2)
    assert not pages.hold(SEGMENT, wanted[::-1])
    assert not pages.hold(SEGMENT._replace(generation=6), wanted)
    assert not pages.hold(SEGMENT._replace(segment_id=SegmentId(4)), wanted)
    assert not pages.hold(SEGMENT._replace(seed=1), wanted)
    (record, location, _), second = wanted
    for field, value in record._asdict().items():
        other = bytes(31) + b"\1" if isinstance(value, bytes) else value + 1
        assert not pages.hold(
            SEGMENT, [(record._replace(**{field: other}), location, None), second]
        )
    for field, value in location._asdict().items():
        moved = location._replace(**{field: value + 1})
        assert not pages.hold(SEGMENT, [(record, moved, None), second])


def test_a_record_copied_to_another_place_is_refused() -> None:
    page = memoryview(pack_record_header(header(), SEGMENT.seed))
    with pytest.raises(BadPageError, match="belongs to segment 3"):
        parse_record_header(page, SEGMENT, OFFSET + PAGE_BYTES)
    elsewhere = SegmentHeader(SegmentId(4), 7, 1 << 20, SEGMENT.seed)
    with pytest.raises(BadPageError, match="belongs to segment 3"):
        parse_record_header(page, elsewhere, OFFSET)


def test_a_record_that_would_pass_the_segments_end_is_refused() -> None:
    short = SegmentHeader(SEGMENT.segment_id, 7, OFFSET + 2 * PAGE_BYTES, SEGMENT.seed)
    page = memoryview(pack_record_header(header(), SEGMENT.seed))
    with pytest.raises(BadPageError, match="cannot lie here"):
        parse_record_header(page, short, OFFSET)


@given(position=st.integers(0, PAGE_BYTES * 8 - 1))
def test_any_flipped_bit_of_a_record_header_is_noticed(position: int) -> None:
    page = bytearray(pack_record_header(header(), SEGMENT.seed))
    page[position // 8] ^= 1 << position % 8
    with pytest.raises(BadPageError):
        parse_record_header(memoryview(page), SEGMENT, OFFSET)


@given(position=st.integers(0, PAGE_BYTES * 8 - 1))
def test_any_flipped_bit_of_a_segment_header_is_noticed(position: int) -> None:
    page = bytearray(pack_segment_header(SEGMENT))
    page[position // 8] ^= 1 << position % 8
    with pytest.raises(BadPageError):
        parse_segment_header(memoryview(page), SEGMENT.segment_id)


def test_a_segment_header_parses_as_it_was_packed() -> None:
    page = memoryview(pack_segment_header(SEGMENT))
    assert parse_segment_header(page, SEGMENT.segment_id) == SEGMENT


def test_a_page_of_zeros_is_a_segment_that_was_never_opened() -> None:
    assert parse_segment_header(memoryview(bytes(PAGE_BYTES)), SegmentId(0)) is None


def test_another_segments_header_is_refused() -> None:
    page = memoryview(pack_segment_header(SEGMENT))
    with pytest.raises(BadPageError, match="of segment 3"):
        parse_segment_header(page, SegmentId(4))


def test_a_marker_parses_as_it_was_packed() -> None:
    assert parse_marker(pack_marker(Marker(2, 4096))) == Marker(2, 4096)


def test_a_newer_marker_says_what_to_do() -> None:
    raw = json.dumps({"format": 4, "segment_bytes": 4096, "more": True}).encode()
    with pytest.raises(FormatTooNewError, match="upgrade kvtier"):
        parse_marker(raw)


@pytest.mark.parametrize("raw", [b"", b"\xff\xfe", b"[]", b"{}", b'{"format": "x"}', b"1"])
def test_a_marker_of_somebody_else_is_refused(raw: bytes) -> None:
    with pytest.raises(BadPageError):
        parse_marker(raw)


@pytest.mark.parametrize(
    ("payload_bytes", "expected"), [(1, 8192), (4096, 8192), (4097, 12288), (2 << 20, 2101248)]
)
def test_a_record_takes_a_page_more_than_its_rounded_payload(
    payload_bytes: int, expected: int
) -> None:
    assert record_bytes(payload_bytes) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [("000042.seg", 42), ("42.seg", None), ("000042.seg.tmp", None), ("x000042.seg", None)],
)
def test_only_six_digits_name_a_segment(name: str, expected: int | None) -> None:
    assert parse_segment_name(name) == expected
