"""Memory to encrypt into: used again, a bounded part of it kept, and never by two at once."""

from storage.ssd.buffer_pool import BufferPool
from storage.tier import PAGE_BYTES
from tests.ssd.blocks import block, read, soft_block
from tests.ssd.scenarios import ENCRYPTED, opened


def test_what_is_given_back_is_taken_again() -> None:
    pool = BufferPool(4 * PAGE_BYTES)
    one, other = pool.take(PAGE_BYTES), pool.take(PAGE_BYTES)
    one[0], other[0] = 1, 2
    pool.give_back(one)
    again, fresh = pool.take(PAGE_BYTES), pool.take(PAGE_BYTES)
    assert (again[0], fresh[0], other[0]) == (1, 0, 2)
    assert pool.kept_bytes == 0


def test_only_so_much_is_kept_and_of_the_size_that_is_wanted_now() -> None:
    pool = BufferPool(4 * PAGE_BYTES)
    for _ in range(6):
        pool.give_back(memoryview(bytearray(PAGE_BYTES)))
    assert pool.kept_bytes == 4 * PAGE_BYTES
    pool.give_back(memoryview(bytearray(3 * PAGE_BYTES)))
    assert pool.kept_bytes == 3 * PAGE_BYTES
    pool.give_back(memoryview(bytearray(PAGE_BYTES)))
    pool.give_back(memoryview(bytearray(8 * PAGE_BYTES)))
    assert pool.kept_bytes <= 4 * PAGE_BYTES


async def test_appends_share_the_memory_and_mix_nothing_up(tmp_path) -> None:
    """Of blocks that a codec shrinks and of others, one append after the other."""
    tier = opened(tmp_path, codec="zstd", encryption=ENCRYPTED)
    kept, numbers = [], iter(range(100))
    for _ in range(3):
        batch = [
            make(next(numbers), payload_bytes=size)
            for size in (5000, 9000)
            for make in (block, soft_block)
        ]
        places = await tier.append([(b.record, b.view()) for b in batch])
        kept += list(zip(batch, places, strict=True))
        for b, place in kept:
            assert await read(tier, b.record, place) == b.payload
    await tier.close()
