"""Encryption turned on and off, and other master keys."""

from dataclasses import replace
from pathlib import Path

import pytest

from storage.errors import (
    DataKeysLostError,
    MasterKeyNeededError,
    MasterKeyWrongError,
)
from storage.ssd.format import (
    parse_marker,
)
from storage.ssd.key_file import (
    pack_key_file,
    parse_key_file,
)
from storage.ssd.key_ring import NO_ENCRYPTION, Encryption
from storage.tier import PAGE_BYTES, SegmentId
from tests.ssd.blocks import block, read
from tests.ssd.encrypted import MASTER, OTHER_MASTER, Open, every_byte, holds, lose_index, store

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
