"""S3-FIFO remembers no more names than it has blocks, however they leave."""

import pytest

from storage.policy.s3_fifo import S3Fifo


@pytest.mark.parametrize("evicted", [0, 1, 50, 90])
def test_what_is_remembered_shrinks_with_what_is_there(evicted: int) -> None:
    order = S3Fifo()
    for slot in range(100):
        order.insert(slot, 1000 + slot)
        order.offer(slot)
    for _ in range(evicted):
        slot = order.victim()
        assert slot is not None
        order.evict(slot)
        order.check_integrity()
    for slot in [slot for slot in range(100) if slot in order]:
        order.remove(slot)
        order.check_integrity()
