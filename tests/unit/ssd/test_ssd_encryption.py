"""Encryption at rest: what is on the disk is nobody's to read, what comes back is right, and keys
that were destroyed stay so."""

import itertools
import random
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from kvtier.keys import payload_checksum
from storage.codec import Codec
from storage.errors import (
    CorruptBlockError,
    DataKeysLostError,
    FormatTooNewError,
    MasterKeyNeededError,
    MasterKeyWrongError,
    TierIOError,
)
from storage.ssd import key_ring
from storage.ssd.encryption import DataKey, WrongTagError, bound_bytes, organisation_of
from storage.ssd.files import aligned_buffer
from storage.ssd.format import (
    BadPageError,
    Marker,
    pack_marker,
    pack_record_header,
    parse_marker,
    parse_record_header,
    write_record_header,
)
from storage.ssd.key_file import (
    BadKeyFileError,
    KeyFile,
    MasterKey,
    pack_key_file,
    parse_key_file,
)
from storage.ssd.key_ring import NO_ENCRYPTION, Encryption
from storage.ssd.reader import BlockRead
from storage.ssd.tier import SsdTier
from storage.tier import PAGE_BYTES, SegmentId, SsdLocation
from tests.ssd.blocks import CAPACITY_BYTES, Block, append, block, chain, read, soft_block
from tests.ssd.faulty_env import FaultyEnv
from tests.ssd.scenarios import opened
from tests.unit.ssd.test_ssd_format import OFFSET, SEGMENT, header

MASTER, OTHER_MASTER = bytes(range(32)), bytes(range(1, 33))
ON = Encryption((MASTER,))
Open = Callable[..., SsdTier]


@pytest.fixture
async def ssd(tmp_path: Path) -> AsyncIterator[Open]:
    """Opens the tier in tmp_path/"ssd", encrypted unless told otherwise."""
    tiers: list[SsdTier] = []

    def open_one(encryption: Encryption = ON, codec: str = "none", env: Any = None) -> SsdTier:
        tiers.append(opened(tmp_path / "ssd", env, CAPACITY_BYTES, codec, encryption))
        return tiers[-1]

    yield open_one
    for tier in tiers:
        await tier.close()


async def store(tier: SsdTier, blocks: Sequence[Block], owner: str = "acme") -> list[SsdLocation]:
    batch = [(b.record, b.view()) for b in blocks]
    return await tier.append(batch, (), [owner] * len(batch))


async def holds(tier: SsdTier, blocks: Sequence[Block]) -> None:
    """Exactly these blocks, all right."""
    found = dict(tier.recovered())
    assert set(found) == {b.record for b in blocks}
    for b in blocks:
        assert await read(tier, b.record, found[b.record]) == b.payload


def every_byte(directory: Path) -> bytes:
    return b"".join(f.read_bytes() for f in sorted(directory.rglob("*")) if f.is_file())


def lose_index(directory: Path) -> None:
    shutil.rmtree(directory / "index")


# --- a record ---------------------------------------------------------------------------------


def data_key(organisation: str = "acme") -> DataKey:
    return DataKey(bytes(16), organisation, 1, bytes(range(32)))


def test_what_was_encrypted_comes_back_also_in_place() -> None:
    key, plain = data_key(), memoryview(bytearray(random.Random(1).randbytes(9000)))
    other = memoryview(bytearray(9000))
    tag = key.encrypt(b"n" * 12, b"bound", plain, other)
    encrypted = key.encrypted(b"n" * 12, tag, bytes(32))
    back = memoryview(bytearray(9000))
    key.decrypt(encrypted, b"bound", other, back)
    assert back == plain
    before = bytes(plain)
    assert key.encrypt(b"n" * 12, b"bound", plain, plain) == tag
    assert plain == other
    key.decrypt(encrypted, b"bound", plain, plain)
    assert plain == before


def test_bytes_of_another_block_owner_key_or_codec_do_not_open() -> None:
    key, record = data_key(), block("a").record
    plain = memoryview(bytearray(b"x" * 100))
    target = memoryview(bytearray(100))
    ways = [
        bound_bytes(record, 100, Codec(0), "acme", bytes(16)),
        bound_bytes(record, 100, Codec(1), "acme", bytes(16)),
        bound_bytes(record, 99, Codec(0), "acme", bytes(16)),
        bound_bytes(record, 100, Codec(0), "acme/x", bytes(16)),
        bound_bytes(record, 100, Codec(0), "acme", b"k" * 16),
        bound_bytes(block("b").record, 100, Codec(0), "acme", bytes(16)),
        bound_bytes(record._replace(checksum=1), 100, Codec(0), "acme", bytes(16)),
    ]
    for one, other in itertools.permutations(ways, 2):
        tag = key.encrypt(b"n" * 12, one, plain, target)
        encrypted = key.encrypted(b"n" * 12, tag, record.block_hash)
        with pytest.raises(WrongTagError):
            key.decrypt(encrypted, other, target, memoryview(bytearray(100)))


def test_masks_of_many_names_are_those_of_each() -> None:
    key = data_key()
    names = [block(i).hash for i in range(7)]
    column = np.frombuffer(b"".join(names), "V32")
    assert key.masks(column).tolist() == [key.mask(name) for name in names]
    assert len({key.mask(name) for name in names}) == 7


def test_the_bytes_of_an_encrypted_header_are_frozen() -> None:
    plain = header()._replace(owner="acme")
    encrypted = data_key().encrypted(b"n" * 12, b"t" * 16, plain.record.block_hash)
    page = memoryview(bytearray(pack_record_header(plain, SEGMENT.seed)))
    before = bytes(page)
    write_record_header(plain._replace(encrypted=encrypted), SEGMENT.seed, page)
    assert (before[28], page[28]) == (0, 1)
    assert bytes(page[1712:1756]) == bytes(16) + b"n" * 12 + b"t" * 16
    masked = int.from_bytes(page[64:72], "little")
    assert masked == plain.record.checksum ^ encrypted.mask
    changed = {i for i in range(4088) if page[i] != before[i]}
    assert changed <= {28, *range(64, 72), *range(1712, 1756)}
    found = parse_record_header(page, SEGMENT, OFFSET)
    assert found.encrypted == encrypted._replace(mask=0, key_number=0)
    assert found.record.checksum == masked
    write_record_header(plain, SEGMENT.seed, page)
    assert bytes(page) == before, "nothing is left of it"


def test_a_way_of_encrypting_that_is_not_known_is_refused() -> None:
    page = bytearray(pack_record_header(header(), SEGMENT.seed))
    page[28] = 2
    page[4088:] = xxhash.xxh3_64_intdigest(page[:4088], SEGMENT.seed).to_bytes(8, "little")
    with pytest.raises(BadPageError, match="encryption 2"):
        parse_record_header(memoryview(page), SEGMENT, OFFSET)


def test_the_marker_keeps_out_who_does_not_know_keys() -> None:
    raw = pack_marker(Marker(3, 4096))
    assert b'"format": 3' in raw
    assert parse_marker(raw).encrypted
    assert not parse_marker(pack_marker(Marker(2, 4096))).encrypted
    with pytest.raises(FormatTooNewError):
        parse_marker(pack_marker(Marker(4, 4096)))
    for bad in (raw.replace(b"3", b"2"), pack_marker(Marker(2, 4096)).replace(b"2", b"3")):
        with pytest.raises(BadPageError, match="encrypted"):
            parse_marker(bad)


@pytest.mark.parametrize(("owner", "whose"), [("", ""), ("a", "a"), ("a/b/c", "a")])
def test_an_owner_has_the_key_of_its_organisation(owner: str, whose: str) -> None:
    assert organisation_of(owner) == whose


# --- the file of keys ---------------------------------------------------------------------------


def key_file() -> KeyFile:
    draw = random.Random(3).randbytes
    master = MasterKey(MASTER)
    keys = [DataKey(draw(16), name, i + 1, draw(32)) for i, name in enumerate(["", "acmé"])]
    wrapped = [master.wrap(b"s" * 16, key, 1.5, 7, draw) for key in keys]
    return KeyFile(b"s" * 16, tuple(wrapped), 2, 3, {4: 1, 0: 9})


def test_a_file_of_keys_parses_as_it_was_packed() -> None:
    file = key_file()
    assert parse_key_file(pack_key_file(file)) == file
    assert parse_key_file(pack_key_file(KeyFile(b"s" * 16))) == KeyFile(b"s" * 16)


def test_no_damaged_file_of_keys_is_believed() -> None:
    raw = pack_key_file(key_file())
    for at in range(len(raw)):
        bad = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        try:
            found = parse_key_file(bad)
        except BadKeyFileError:
            continue
        # The last line feed alone may be another byte: no word of the file is.
        assert found == key_file()
        assert at == len(raw) - 1
    for end in range(len(raw) - 1):
        with pytest.raises(BadKeyFileError):
            parse_key_file(raw[:end])


def test_a_wrapped_key_does_not_open_elsewhere() -> None:
    master, (wrapped, other) = MasterKey(MASTER), key_file().keys
    assert master.unwrap(b"s" * 16, wrapped).organisation == ""
    for bad in (
        replace(wrapped, organisation="acme"),
        replace(wrapped, number=3),
        replace(wrapped, key_id=b"i" * 16),
        replace(wrapped, wrapped=other.wrapped),
        replace(wrapped, nonce=other.nonce),
    ):
        with pytest.raises(BadKeyFileError):
            master.unwrap(b"s" * 16, bad)
    with pytest.raises(BadKeyFileError):
        master.unwrap(b"S" * 16, wrapped)
    with pytest.raises(BadKeyFileError):
        MasterKey(OTHER_MASTER).unwrap(b"s" * 16, wrapped)


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


# --- turned on, turned off ------------------------------------------------------------------------


async def test_over_a_plain_store_new_blocks_are_encrypted_and_old_ones_are_read(
    ssd: Open,
) -> None:
    old, new = [block("old 1"), block("old 2")], [block("new")]
    tier = ssd(NO_ENCRYPTION)
    places = await store(tier, old)
    await tier.close()
    tier = ssd()
    found = dict(tier.recovered())
    assert tier.clear_ends[0] > places[-1].offset
    assert tier.encryption.clear_segment_count == 1
    (place,) = await store(tier, new)
    assert place.offset >= tier.clear_ends[place.segment_id]
    assert await read(tier, old[0].record, found[old[0].record]) == old[0].payload
    (moved,) = await tier.relog([(old[0].record, places[0])])
    assert moved is not None
    await tier.close()
    tier = ssd()
    assert tier.clear_ends[0] == places[1].offset + PAGE_BYTES, "written again, it is encrypted"
    await holds(tier, [*old, *new])


async def test_a_segment_that_was_in_clear_is_not_when_it_has_been_filled_anew(
    ssd: Open, tmp_path: Path
) -> None:
    old = [block(f"old {i}") for i in range(5)]
    tier = ssd(NO_ENCRYPTION)
    await store(tier, [*old, block("next")])
    await tier.close()
    tier = ssd()
    assert tier.encryption.clear_segment_count == 2
    await tier.forget([b.hash for b in old])
    await tier.recycle(SegmentId(0))
    number = 0
    while tier.encryption.clear_segment_count == 2:
        await store(tier, [block(f"new {number}", payload_bytes=9000)])
        number += 1
        assert number < 40
    await tier.close()
    raw = (tmp_path / "ssd" / "segments" / "000000.seg").read_bytes()
    for b in old:
        for start in range(0, len(b.payload) - 16, 512):
            assert b.payload[start : start + 16] not in raw
    assert ssd().encryption.clear_segment_count == 1


async def test_no_master_key_is_refused_and_given_up_on_demand(ssd: Open, tmp_path: Path) -> None:
    tier = ssd()
    await store(tier, [block("a")])
    await tier.close()
    with pytest.raises(MasterKeyNeededError, match="master_key_file"):
        ssd(NO_ENCRYPTION)
    tier = ssd()
    await holds(tier, [block("a")])
    await tier.close()
    tier = ssd(Encryption(give_up=True))
    assert tier.report.dropped_count == 1
    assert "destroyed or" in tier.report.problems[0]
    assert not (tmp_path / "ssd" / "KEYS").exists()
    await tier.close()
    lose_index(tmp_path / "ssd")
    tier = ssd(NO_ENCRYPTION)
    assert list(tier.recovered()) == []
    await store(tier, [block("b")])
    await tier.close()
    await holds(ssd(NO_ENCRYPTION), [block("b")])


async def test_giving_up_changes_nothing_where_all_can_be_read(ssd: Open) -> None:
    tier = ssd()
    await store(tier, [block("a")])
    await tier.close()
    await holds(ssd(Encryption((MASTER,), give_up=True)), [block("a")])


async def test_encryption_can_be_turned_off_where_nothing_is_encrypted_yet(
    ssd: Open, tmp_path: Path
) -> None:
    await ssd().close()
    await ssd(NO_ENCRYPTION).close()
    assert not (tmp_path / "ssd" / "KEYS").exists()
    assert not parse_marker((tmp_path / "ssd" / "KVTIER-SSD").read_bytes()).encrypted


@pytest.mark.parametrize("damage", ["missing", "torn", "flipped", "empty", "a key is another's"])
async def test_a_damaged_file_of_keys_is_refused_and_given_up_on_demand(
    ssd: Open, tmp_path: Path, damage: str
) -> None:
    tier = ssd()
    await store(tier, [block("a")], "acme")
    await store(tier, [block("b")], "bert")
    await tier.close()
    path = tmp_path / "ssd" / "KEYS"
    raw = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "a key is another's":
        file = parse_key_file(raw)
        one, other = file.keys
        keys = (replace(one, organisation="bert"), replace(other, organisation="acme"))
        path.write_bytes(pack_key_file(replace(file, keys=keys)))
    else:
        bad = {"torn": raw[: len(raw) // 2], "empty": b"", "flipped": raw.replace(b"1", b"2", 1)}
        path.write_bytes(bad[damage])
    before = every_byte(tmp_path / "ssd")
    with pytest.raises(DataKeysLostError, match="from a copy"):
        ssd()
    assert every_byte(tmp_path / "ssd") == before, "a refusal changes nothing"
    tier = ssd(Encryption((MASTER,), give_up=True))
    assert tier.report.dropped_count == 2
    await store(tier, [block("c")])
    await tier.close()
    await holds(ssd(), [block("c")])


# --- master keys ----------------------------------------------------------------------------------


async def test_a_wrong_master_key_is_refused_and_the_right_one_opens(ssd: Open) -> None:
    tier = ssd()
    await store(tier, [block("a")])
    fingerprint = tier.encryption.master
    await tier.close()
    with pytest.raises(MasterKeyWrongError, match="old_master_key_files") as caught:
        ssd(Encryption((OTHER_MASTER,)))
    assert fingerprint in str(caught.value)
    await holds(ssd(), [block("a")])


async def test_another_master_key_wraps_anew_and_the_old_one_opens_nothing(
    ssd: Open, tmp_path: Path
) -> None:
    tier = ssd()
    await store(tier, [block("a")])
    await tier.close()
    tier = ssd(Encryption((OTHER_MASTER, MASTER)))
    keys = tier.data_keys(None)
    await tier.close()
    with pytest.raises(MasterKeyWrongError):
        ssd()
    tier = ssd(Encryption((OTHER_MASTER,)))
    assert tier.data_keys(None) == keys, "wrapped anew, not made anew"
    await holds(tier, [block("a")])


# --- destroyed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", ["nothing", "index"])
async def test_what_was_encrypted_under_a_destroyed_key_never_comes_back(
    ssd: Open, tmp_path: Path, lost: str
) -> None:
    mine, theirs = [block("a"), block("b")], [block("c")]
    tier = ssd()
    places = await store(tier, mine, "acme/search")
    await store(tier, theirs, "bert")
    ids = tier.data_keys("acme")
    done = await tier.destroy_keys("acme")
    assert (done.key_ids, done.durable) == (ids, True)
    with pytest.raises(CorruptBlockError):
        await read(tier, mine[0].record, places[0])
    with pytest.raises(CorruptBlockError):
        await tier.verify(mine[1].record, places[1])
    assert (await tier.relog([(mine[0].record, places[0])])) == [None]
    assert (await tier.destroy_keys("acme")).key_ids == ()
    await tier.close()
    if lost == "index":
        lose_index(tmp_path / "ssd")
    tier = ssd()
    assert tier.encryption.destroyed_count == 1
    assert any("2 blocks are encrypted" in problem for problem in tier.report.problems)
    assert tier.report.dropped_count == 2
    await holds(tier, theirs)
    await store(tier, mine, "acme")
    await tier.close()
    await holds(ssd(), [*mine, *theirs])


async def test_a_new_key_after_the_old_one_opens_nothing_of_the_old(ssd: Open) -> None:
    """Also where the index still names what nobody can read."""
    tier = ssd()
    await store(tier, [block("old")])
    await tier.destroy_keys("acme")
    await store(tier, [block("new")])
    assert len(tier.data_keys("acme")) == 1
    await tier.close()
    tier = ssd()
    assert tier.report.dropped_count == 1
    await holds(tier, [block("new")])


async def test_all_keys_are_destroyed_at_once(ssd: Open) -> None:
    tier = ssd()
    for owner in ("", "acme", "bert"):
        await store(tier, [block(owner)], owner)
    assert len((await tier.destroy_keys(None)).key_ids) == 3
    await tier.close()
    tier = ssd()
    assert tier.report.dropped_count == 3
    await holds(tier, [])


async def test_a_disk_that_refuses_makes_a_destruction_not_durable_and_it_can_be_repeated(
    ssd: Open,
) -> None:
    env = FaultyEnv(refuse_direct=True)
    tier = ssd(env=env)
    (at,) = await store(tier, [block("a")])
    env.fail("rename", 5)
    done = await tier.destroy_keys("acme")
    assert not done.durable
    assert "Errno 5" in done.problem
    with pytest.raises(CorruptBlockError):
        await read(tier, block("a").record, at)
    again = await tier.destroy_keys("acme")
    assert again.durable
    await tier.close()
    tier = ssd()
    assert tier.report.dropped_count == 1


async def test_a_key_that_is_not_on_the_disk_encrypts_nothing(ssd: Open, tmp_path: Path) -> None:
    env = FaultyEnv(refuse_direct=True)
    tier = ssd(env=env)
    for call in ("pwritev", "fdatasync", "rename"):
        env.fail(call, 5)
        with pytest.raises(TierIOError, match="data keys cannot be written"):
            await store(tier, [block("a")])
    await store(tier, [block("a")])
    on_disk = parse_key_file((tmp_path / "ssd" / "KEYS").read_bytes())
    assert [key.key_id for key in on_disk.keys] == list(tier.data_keys(None))
    await tier.close()
    await holds(ssd(), [block("a")])


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
