"""Encryption at rest: what is on the disk is nobody's to read, and what comes back is right."""

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from kvtier.keys import payload_checksum
from storage.errors import (
    CorruptBlockError,
    TierIOError,
)
from storage.ssd import key_ring
from storage.ssd.files import aligned_buffer
from storage.ssd.format import (
    pack_record_header,
    parse_record_header,
)
from storage.ssd.key_ring import NO_ENCRYPTION
from storage.ssd.reader import BlockRead
from storage.tier import PAGE_BYTES, SsdLocation
from tests.ssd.blocks import Block, append, block, chain, read, soft_block
from tests.ssd.encrypted import Open, every_byte, holds, lose_index, store

# --- a store --------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["none", "planes_lz4", "zstd"])
@pytest.mark.parametrize("lost", ["nothing", "index"])
async def test_blocks_come_back_through_every_start(
    ssd: Open, tmp_path: Path, codec: str, lost: str
) -> None:
    blocks = [*chain("c", 3), soft_block("s"), soft_block("t", payload_bytes=2 * PAGE_BYTES)]
    tier = ssd(codec=codec)
    locations = await store(tier, blocks, "acme/search")
    for b, location in zip(blocks, locations, strict=True):
        assert await read(tier, b.record, location) == b.payload
        await tier.verify(b.record, location)
    await tier.close()
    if lost == "index":
        lose_index(tmp_path / "ssd")
    tier = ssd()
    assert tier.report.kept_count == len(blocks)
    assert lost == "index" or tier.report.problems == ()
    await holds(tier, blocks)


@pytest.mark.parametrize("lost", ["nothing", "index"])
async def test_a_record_written_again_is_still_encrypted(
    ssd: Open, tmp_path: Path, lost: str
) -> None:
    tier = ssd(codec="zstd")
    blocks = [block("raw"), soft_block("small")]
    places = await store(tier, blocks)
    moved = await tier.relog([(b.record, p) for b, p in zip(blocks, places, strict=True)])
    for b, place in zip(blocks, moved, strict=True):
        assert place is not None
        assert await read(tier, b.record, place) == b.payload
    await tier.close()
    if lost == "index":
        lose_index(tmp_path / "ssd")
    await holds(ssd(), blocks)


async def test_nothing_of_a_payload_or_its_checksum_is_on_the_disk(
    ssd: Open, tmp_path: Path
) -> None:
    pattern = b"the quick brown fox jumps over the lazy dog, 16 times. "
    payload = pattern * 80
    base = block("secret").record
    checksum = payload_checksum(base.block_hash, payload)
    secret = Block(base._replace(payload_bytes=len(payload), checksum=checksum), payload)
    tier = ssd()
    (at,) = await store(tier, [secret])
    await tier.relog([(secret.record, at)])
    await tier.close()
    raw = every_byte(tmp_path / "ssd")
    assert secret.hash in raw, "names are in clear"
    assert pattern[:16] not in raw
    assert secret.record.checksum.to_bytes(8, "little") not in raw
    shutil.rmtree(tmp_path / "ssd")
    plain = ssd(NO_ENCRYPTION)
    await store(plain, [secret])
    await plain.close()
    raw = every_byte(tmp_path / "ssd")
    assert pattern in raw
    assert secret.record.checksum.to_bytes(8, "little") in raw


async def test_organisations_have_a_key_each_and_nobody_has_one(ssd: Open) -> None:
    tier = ssd()
    for name, owner in (("a", "acme"), ("b", "acme/x"), ("c", "bert"), ("d", ""), ("e", "acme")):
        await store(tier, [block(name)], owner)
    assert tier.encryption.key_count == 3
    assert len(tier.data_keys("acme")) == len(tier.data_keys("")) == 1
    assert len(tier.data_keys(None)) == 3
    assert tier.data_keys("nobody else") == ()


async def test_a_key_that_no_block_needs_is_dropped_at_the_next_start(ssd: Open) -> None:
    tier = ssd()
    await store(tier, [block("a")], "acme")
    await store(tier, [block("b")], "bert")
    await tier.forget([block("a").hash])
    await tier.close()
    tier = ssd()
    assert tier.data_keys("acme") == ()
    assert tier.encryption.destroyed_count == 0
    await holds(tier, [block("b")])


async def test_a_key_is_used_for_so_many_records_and_then_there_is_another(
    ssd: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_ring, "RECORDS_MAX", 6)
    monkeypatch.setattr(key_ring, "_STEP", 2)
    tier = ssd()
    blocks = [block(i) for i in range(4)]
    await store(tier, blocks[:2])
    assert len(tier.data_keys("acme")) == 1
    await tier.close()
    tier = ssd()  # what was promised counts as used
    await store(tier, blocks[2:])
    first = tier.data_keys("acme")
    await store(tier, [block("more")])
    assert first != tier.data_keys("acme")
    await tier.close()
    await holds(ssd(), [*blocks, block("more")])


async def test_as_many_keys_as_can_be_told_apart_are_enough(
    ssd: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_ring, "RECORDS_MAX", 1)
    tier = ssd()
    blocks = [block(i, payload_bytes=100) for i in range(16)]
    for b in blocks[:15]:
        await store(tier, [b])
    with pytest.raises(TierIOError, match="15 data keys"):
        await store(tier, blocks[15:])
    await tier.close()
    await holds(ssd(), blocks[:15])


# --- damage ---------------------------------------------------------------------------------------


async def test_a_flipped_bit_anywhere_in_a_record_is_found(ssd: Open, tmp_path: Path) -> None:
    tier = ssd(codec="zstd")
    blocks = [block("raw", payload_bytes=5000), soft_block("small")]
    places = await store(tier, blocks)
    path = tmp_path / "ssd" / "segments" / "000000.seg"
    chosen = random.Random(5)
    for b, at in zip(blocks, places, strict=True):
        header_bytes = [28, 64, 100, 168, 170, *range(1712, 1756), 4088]
        stored = [PAGE_BYTES + chosen.randrange(at.stored_bytes) for _ in range(40)]
        for place in header_bytes + stored:
            with path.open("r+b") as file:
                file.seek(at.offset + place)
                (byte,) = file.read(1)
                file.seek(at.offset + place)
                file.write(bytes([byte ^ 1 << chosen.randrange(8)]))
                file.flush()
                with pytest.raises(CorruptBlockError):
                    await read(tier, b.record, at)
                with pytest.raises(CorruptBlockError):
                    await tier.verify(b.record, at)
                file.seek(at.offset + place)
                file.write(bytes([byte]))
        assert await read(tier, b.record, at) == b.payload


async def test_a_header_that_names_anothers_key_opens_nothing(ssd: Open, tmp_path: Path) -> None:
    """Who may write the directory makes every checksum right, and still has no tag."""
    tier = ssd()
    (mine,) = await store(tier, [block("a")], "acme")
    (yours,) = await store(tier, [block("b")], "bert")
    seed = next(s.seed for s in tier._table.view if s.segment_id == mine.segment_id)
    segment = tier._table.header_of(tier._table.view[mine.segment_id])
    path = tmp_path / "ssd" / "segments" / f"{mine.segment_id:06d}.seg"
    raw = path.read_bytes()

    def header_at(at: SsdLocation) -> Any:
        page = memoryview(raw)[at.offset : at.offset + PAGE_BYTES]
        return tier._keys.unmasked(parse_record_header(page, segment, at.offset))

    one, other = header_at(mine), header_at(yours)
    forged = [
        # The owner of the one, the key and tag of the other; its bytes, too.
        (one._replace(encrypted=other.encrypted), mine),
        (one._replace(encrypted=other.encrypted), yours),
        (one._replace(owner="bert"), mine),
        (one._replace(owner=""), mine),
    ]
    for bad, bytes_of in forged:
        stored = raw[bytes_of.offset + PAGE_BYTES :][: bytes_of.stored_bytes]
        with path.open("r+b") as file:
            file.seek(mine.offset)
            file.write(pack_record_header(bad, seed) + stored)
        with pytest.raises(CorruptBlockError):
            await read(tier, block("a").record, mine)
    path.write_bytes(raw)
    assert await read(tier, block("a").record, mine) == block("a").payload


async def test_runs_of_encrypted_records_are_read_in_one_go_and_a_bad_one_alone_fails(
    ssd: Open, tmp_path: Path
) -> None:
    blocks = [block(i, payload_bytes=2 * PAGE_BYTES) for i in range(4)]
    tier = ssd()
    places = await store(tier, blocks)
    path = tmp_path / "ssd" / "segments" / "000000.seg"
    with path.open("r+b") as file:
        file.seek(places[2].offset + PAGE_BYTES + 77)
        file.write(b"\0\1\2\3")
    targets = [aligned_buffer(2 * PAGE_BYTES) for _ in blocks]
    reads = [BlockRead(b.record, p, t) for b, p, t in zip(blocks, places, targets, strict=True)]
    ended: dict[int, Exception | None] = {}
    await tier.read_many(reads, lambda i, error: ended.update({i: error}))
    assert [i for i in range(4) if isinstance(ended[i], CorruptBlockError)] == [2]
    for i in (0, 1, 3):
        assert bytes(targets[i]) == blocks[i].payload
    await append(tier, [block("more")])
