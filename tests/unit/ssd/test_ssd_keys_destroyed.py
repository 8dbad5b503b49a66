"""Keys that were destroyed stay so."""

from pathlib import Path

import pytest

from storage.errors import (
    CorruptBlockError,
    TierIOError,
)
from storage.ssd.key_file import (
    parse_key_file,
)
from tests.ssd.blocks import block, read
from tests.ssd.encrypted import Open, holds, lose_index, store
from tests.ssd.faulty_env import FaultyEnv


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
