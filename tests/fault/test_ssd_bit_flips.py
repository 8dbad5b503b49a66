"""One bit wrong in any field of anything on the disk: a miss at worst, never a wrong byte."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import rocksdict

from storage.errors import (
    CorruptBlockError,
    ForeignDirectoryError,
)
from storage.ssd.format import segment_path
from storage.ssd.key_ring import NO_ENCRYPTION, Encryption
from storage.ssd.tier import SsdTier
from storage.tier import PAGE_BYTES, SegmentId, SsdLocation
from tests.ssd.blocks import SEGMENT_BYTES, Block, append, block, read, soft_block
from tests.ssd.scenarios import opened

# Offsets as in docs/formats/segment.md; each field's first and last byte.
SEGMENT_FIELDS = {
    "magic": (0, 7),
    "format version": (8, 11),
    "segment id": (12, 15),
    "generation": (16, 23),
    "segment bytes": (24, 31),
    "seed": (32, 39),
    "zeros": (40, 4087),
    "checksum": (4088, 4095),
}
RECORD_FIELDS = {
    "magic": (0, 7),
    "format version": (8, 11),
    "codec": (12, 15),
    "generation": (16, 23),
    "segment id": (24, 27),
    "encrypted": (28, 31),
    "offset": (32, 39),
    "sequence number": (40, 47),
    "payload bytes": (48, 55),
    "stored bytes": (56, 63),
    "checksum of the payload": (64, 71),
    "namespace id": (72, 103),
    "block hash": (104, 135),
    "parent hash": (136, 167),
    "bytes of the owner": (168, 169),
    "owner": (170, 1707),
    "first zeros": (1708, 1711),
    "id of the data key": (1712, 1727),
    "nonce": (1728, 1739),
    "tag": (1740, 1755),
    "last zeros": (1756, 4079),
    "marks": (4080, 4087),
    "checksum": (4088, 4095),
}
BLOCK_ROW_FIELDS = {
    "parent": 0,
    "namespace": 32,
    "segment id": 64,
    "codec and key": 68,
    "owner": 69,
    "generation": 72,
    "offset": 80,
    "payload bytes": 88,
    "stored bytes": 96,
    "checksum of the payload": 104,
    "sequence": 112,
    "checksum": 120,
}
SEGMENT_ROW_FIELDS = {
    "generation": 0,
    "state": 8,
    "tail": 16,
    "seed": 24,
    "pre-written": 32,
    "checksum": 40,
}
META_ROW_FIELDS = {"format": 0, "segment bytes": 8, "open count": 16, "checksum": 24}

BLOCKS = [block("a"), soft_block("b"), block("c"), *(block(f"d {i}") for i in range(4))]
"""The second one is encoded; the last ones lie in the next segment."""
VICTIM = 1


@pytest.fixture
async def stored(memory_path: Path, encryption: Encryption) -> tuple[Path, list[SsdLocation]]:
    path = memory_path / "stored"
    tier = opened(path, codec="zstd", encryption=encryption)
    batch = [(b.record, b.view()) for b in BLOCKS]
    places = await tier.append(batch, (), ["acme/search"] * len(batch))
    await tier.close()
    assert places[VICTIM].stored_bytes < places[VICTIM].payload_bytes
    assert {x.segment_id for x in places} == {0, 1}
    return path, places


@contextmanager
def flipped(file: Path, offset: int, bit: int) -> Iterator[None]:
    """One bit, for a while."""
    flip(file, offset, bit)
    yield
    flip(file, offset, bit)


def flip(path: Path, offset: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


async def survivors(tier: SsdTier) -> set[int]:
    """Positions in BLOCKS of what recovery gave and reads back; anything else is a failure."""
    known = {b.hash: i for i, b in enumerate(BLOCKS)}
    good = set()
    for record, at in tier.recovered():
        i = known[record.block_hash]
        assert record == BLOCKS[i].record
        try:
            assert await read(tier, record, at) == BLOCKS[i].payload
        except CorruptBlockError:
            continue
        good.add(i)
    return good


async def reopened(path: Path, encryption: Encryption, *, lose_index: bool = False) -> set[int]:
    """What survives in a copy of `path`, which stays as it is."""
    copy = path.parent / "copy"
    shutil.copytree(path, copy)
    if lose_index:
        shutil.rmtree(copy / "index")
    try:
        tier = opened(copy, encryption=encryption)
        good = await survivors(tier)
        (at,) = await append(tier, [fresh := block("fresh")])
        assert await read(tier, fresh.record, at) == fresh.payload
        await tier.close()
        return good
    finally:
        shutil.rmtree(copy)


@pytest.mark.parametrize("what", ["header", "stored bytes", "payload"])
async def test_every_bit_that_a_reader_sees_is_checked(stored, what, encryption) -> None:
    """One tier stays open, so that every single byte can be tried."""
    path, places = stored
    victim: Block = BLOCKS[0] if what == "payload" else BLOCKS[VICTIM]
    at = places[0] if what == "payload" else places[VICTIM]
    tier = opened(path, encryption=encryption)
    file = segment_path(path, at.segment_id)
    inside = {
        "header": [
            *range(182),
            *range(182, 1708, 97),
            *range(1708, 1756),
            *range(1756, 4088, 97),
            *range(4088, 4096),
        ],
        "stored bytes": [*range(PAGE_BYTES, PAGE_BYTES + at.stored_bytes, 7)],
        "payload": [*range(PAGE_BYTES, PAGE_BYTES + at.payload_bytes, 13)],
    }[what]
    for position in inside:
        with flipped(file, at.offset + position, position % 8):
            with pytest.raises(CorruptBlockError):
                await read(tier, victim.record, at)
            with pytest.raises(CorruptBlockError):
                await tier.verify(victim.record, at)
    assert await read(tier, victim.record, at) == victim.payload
    await tier.close()


@pytest.mark.parametrize("field", RECORD_FIELDS)
async def test_a_record_header_costs_its_block_and_without_an_index_what_follows(
    stored, field, encryption
) -> None:
    path, places = stored
    first, last = RECORD_FIELDS[field]
    file = segment_path(path, SegmentId(0))
    everything = set(range(len(BLOCKS)))
    behind = {i for i, x in enumerate(places) if x.segment_id == 0 and i >= VICTIM}
    with flipped(file, places[VICTIM].offset + first, 0):
        assert await reopened(path, encryption) == everything - {VICTIM}
    with flipped(file, places[VICTIM].offset + last, 7):
        assert await reopened(path, encryption, lose_index=True) == everything - behind


@pytest.mark.parametrize("field", SEGMENT_FIELDS)
async def test_a_segment_header_costs_nothing_and_without_an_index_its_segment(
    stored, field, encryption
) -> None:
    path, places = stored
    first, last = SEGMENT_FIELDS[field]
    file = segment_path(path, SegmentId(0))
    elsewhere = {i for i, x in enumerate(places) if x.segment_id != 0}
    with flipped(file, first, 0):
        assert await reopened(path, encryption) == set(range(len(BLOCKS)))
    with flipped(file, last, 7):
        assert await reopened(path, encryption, lose_index=True) == elsewhere


def flip_row(path: Path, key: bytes, offset: int) -> None:
    index = rocksdict.Rdict(str(path / "index"), rocksdict.Options(raw_mode=True))
    value = bytearray(index[key])
    value[offset] ^= 4
    index[key] = bytes(value)
    index.close()


@pytest.mark.parametrize("field", BLOCK_ROW_FIELDS)
async def test_a_block_row_costs_its_block(stored, field, encryption) -> None:
    path, _ = stored
    flip_row(path, b"b" + BLOCKS[VICTIM].hash, BLOCK_ROW_FIELDS[field])
    assert await reopened(path, encryption) == set(range(len(BLOCKS))) - {VICTIM}


@pytest.mark.parametrize(
    ("key", "offset"),
    [(b"s\0\0\0\0", offset) for offset in SEGMENT_ROW_FIELDS.values()]
    + [(b"m", offset) for offset in META_ROW_FIELDS.values()],
    ids=[f"segment: {f}" for f in SEGMENT_ROW_FIELDS] + [f"meta: {f}" for f in META_ROW_FIELDS],
)
async def test_a_segment_row_or_the_meta_row_costs_nothing(stored, key, offset, encryption) -> None:
    path, _ = stored
    flip_row(path, key, offset)
    assert await reopened(path, encryption) == set(range(len(BLOCKS)))


async def test_any_bit_of_the_marker_costs_nothing(stored, encryption) -> None:
    """The segments say whose they are. Above all, no bit makes it one of an older format, which
    would be emptied. A bit that leaves the marker as good as it was is not told of."""
    path, _ = stored
    marker = path / "KVTIER-SSD"
    good = marker.read_bytes()
    for position in range(8 * len(good)):
        raw = bytearray(good)
        raw[position // 8] ^= 1 << position % 8
        marker.write_bytes(raw)
        tier = opened(path, encryption=encryption)
        told = any("KVTIER-SSD was damaged" in each for each in tier.report.problems)
        assert told or marker.read_bytes() == bytes(raw), position
        assert tier.report.kept_count == len(BLOCKS), position
        await tier.close()
        assert encryption == NO_ENCRYPTION or b'"format": 3' in marker.read_bytes(), position
    assert await reopened(path, encryption) == set(range(len(BLOCKS)))


@pytest.mark.parametrize("raw", [b"", b"something else", b'{"format": 2}', b"\xff" * 5000])
async def test_a_marker_that_says_nothing_costs_nothing(stored, raw, encryption) -> None:
    path, _ = stored
    (path / "KVTIER-SSD").write_bytes(raw)
    tier = opened(path, encryption=encryption)
    assert any("KVTIER-SSD was damaged" in each for each in tier.report.problems)
    await tier.close()
    tier = opened(path, encryption=encryption)
    assert not tier.report.problems
    await tier.close()
    assert await reopened(path, encryption) == set(range(len(BLOCKS)))


@pytest.mark.parametrize("what", ["stranger", "no segment", "damaged headers", "another size"])
async def test_a_damaged_marker_without_proof_refuses_and_touches_nothing(
    stored, what, encryption
) -> None:
    path, _ = stored
    marker = path / "KVTIER-SSD"
    marker.write_bytes(b"something else")
    segments = sorted((path / "segments").iterdir())
    if what == "stranger":
        (path / "notes.txt").write_text("mine")
    elif what == "no segment":
        for each in segments:
            each.unlink()
    elif what == "damaged headers":
        for each in segments:
            with each.open("r+b") as file:
                file.write(b"NOT OURS")
    else:
        for each in segments:
            os.truncate(each, SEGMENT_BYTES // 2)
    before = {each: each.read_bytes() for each in path.rglob("*") if each.is_file()}
    with pytest.raises(ForeignDirectoryError):
        opened(path, encryption=encryption)
    after = {each: each.read_bytes() for each in path.rglob("*") if each.is_file()}
    assert after == before


async def test_a_marker_written_by_hand_as_the_document_says_loses_nothing(
    stored, encryption
) -> None:
    path, _ = stored
    said = '"format": 3, "encrypted": true' if encryption != NO_ENCRYPTION else '"format": 2'
    marker = f'{{{said}, "segment_bytes": {SEGMENT_BYTES}, "expiries": true}}'
    (path / "KVTIER-SSD").write_text(marker)
    assert await reopened(path, encryption) == set(range(len(BLOCKS)))
