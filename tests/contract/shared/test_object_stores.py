"""What every engine promises: `storage.shared.objects.ObjectStore`."""

import asyncio
import secrets

import pytest

from storage.errors import ObjectTooLargeError
from storage.shared.objects import ObjectStore


@pytest.fixture
def folder() -> str:
    return f"kvtier/test-{secrets.token_hex(8)}"


async def test_what_was_written_is_read_whole(store: ObjectStore, folder: str) -> None:
    content = secrets.token_bytes(3 << 20)
    await store.write(f"{folder}/aa/b.4", memoryview(content))
    raw = await store.read(f"{folder}/aa/b.4", len(content))
    assert raw is not None
    assert raw.nbytes == len(content)
    assert bytes(raw) == content


async def test_what_is_not_there_is_no_error(store: ObjectStore, folder: str) -> None:
    assert await store.read(f"{folder}/nothing.1", 1000) is None
    assert await store.exists([f"{folder}/nothing.1"]) == [False]
    await store.delete([f"{folder}/nothing.1"])


async def test_more_than_was_asked_for_is_an_error_and_is_not_read(
    store: ObjectStore, folder: str
) -> None:
    content = bytes(2 << 20)
    await store.write(f"{folder}/a.1", memoryview(content))
    with pytest.raises(ObjectTooLargeError) as caught:
        await store.read(f"{folder}/a.1", len(content) - 1)
    assert caught.value.metadata["size_bytes"] == str(len(content))
    raw = await store.read(f"{folder}/a.1", len(content))
    assert raw is not None
    assert raw.nbytes == len(content)


async def test_each_name_has_its_own_answer(store: ObjectStore, folder: str) -> None:
    names = [f"{folder}/{number:02}/x.1" for number in range(20)]
    for name in names[::3]:
        await store.write(name, memoryview(b"here"))
    assert await store.exists(names) == [number % 3 == 0 for number in range(20)]
    assert await store.exists([]) == []


async def test_what_was_deleted_is_gone_and_the_rest_stays(store: ObjectStore, folder: str) -> None:
    names = [f"{folder}/{number:02}/x.1" for number in range(6)]
    for name in names:
        await store.write(name, memoryview(b"here"))
    await store.delete([*names[:4], f"{folder}/never/x.1"])
    assert await store.exists(names) == [False] * 4 + [True] * 2


async def test_a_second_write_leaves_one_whole_content(store: ObjectStore, folder: str) -> None:
    contents = [bytes([number]) * 1_000_000 for number in range(4)]
    for _ in range(5):
        writes = (store.write(f"{folder}/a.1", memoryview(each)) for each in contents)
        await asyncio.gather(*writes)
    raw = await store.read(f"{folder}/a.1", 1_000_000)
    assert raw is not None
    assert bytes(raw) in contents


async def test_deleting_below_takes_everything_there_and_nothing_beside(
    store: ObjectStore, folder: str
) -> None:
    names = [f"{folder}/in/{number:04}/x.1" for number in range(30)]
    beside = [f"{folder}/inside/y.1", f"{folder}/other.1"]
    for name in (*names, *beside):
        await store.write(name, memoryview(b"here"))
    assert await store.delete_below(f"{folder}/none/") == 0
    assert await store.delete_below(f"{folder}/in/") == 30
    assert not any(await store.exists(names))
    assert all(await store.exists(beside))
