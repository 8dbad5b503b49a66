"""Small values of the owner's come back with every start; a damaged one does not."""

from pathlib import Path
from typing import Any

import rocksdict

from storage.ssd.memo_rows import memo_entry
from tests.ssd.blocks import append, chain


def test_the_bytes_of_a_memo_row_are_frozen() -> None:
    key, row = memo_entry(b"name", b"value")
    assert key == b"nname"
    assert row is not None
    assert row.hex() == b"value".hex() + "c30311bf3c6bbdd4"


async def test_memos_come_back_until_they_are_deleted(open_tier: Any) -> None:
    tier = open_tier()
    await tier.save_memos([(b"one", b"1"), (b"two", b"2" * 100_000)])
    await tier.save_memos([(b"one", b"11"), (b"three", b"")])
    await tier.close()
    tier = open_tier()
    assert tier.memos == {b"one": b"11", b"two": b"2" * 100_000, b"three": b""}
    await tier.save_memos([(b"two", None), (b"never", None)])
    await tier.close()
    assert set(open_tier().memos) == {b"one", b"three"}


async def test_a_damaged_memo_is_told_and_takes_nothing_with_it(
    open_tier: Any, tmp_path: Path
) -> None:
    tier = open_tier()
    (block,) = chain("a", 1)
    await append(tier, [block])
    await tier.save_memos([(b"one", b"1"), (b"two", b"2")])
    await tier.close()
    index = rocksdict.Rdict(str(next(tmp_path.rglob("index"))), rocksdict.Options(raw_mode=True))
    index[b"none"] = b"12345678"
    index.close()
    tier = open_tier()
    assert tier.memos == {b"two": b"2"}
    assert any("1 memos" in problem for problem in tier.report.problems)
    assert tier.report.kept_count == 1
