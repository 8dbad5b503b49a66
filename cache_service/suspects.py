"""Suspects: is it the block or the disk? Tells one bad place from a device that fails for now.

A block that cannot be read is given up, with everything after it, only when it fails twice while
other I/O succeeded in between: dropping it at the first error would let one hiccup on a shared
beginning (a system prompt) empty the tier. Until then it is a miss of the moment.

Invariant: bounded; the oldest suspects are forgotten first. Event loop only.
"""

from collections import OrderedDict

from cache_service.ssd_health import SsdHealth
from kvtier.keys import BlockHash

__all__ = ["Suspects"]

SUSPECTS_MAX = 4096


class Suspects:
    """Blocks whose last read failed, with how much the device had done until then."""

    def __init__(self, health: SsdHealth) -> None:
        self._health = health
        self._failed: OrderedDict[BlockHash, int] = OrderedDict()

    def failed(self, block_hash: BlockHash) -> bool:
        """Notes a failure. True when the fault is the block's own: the device works otherwise."""
        before = self._failed.get(block_hash)
        if before is not None and self._health.success_count > before:
            del self._failed[block_hash]
            return True
        if before is None:
            self._failed[block_hash] = self._health.success_count
            if len(self._failed) > SUSPECTS_MAX:
                self._failed.popitem(last=False)
        return False

    def cleared(self, block_hash: BlockHash) -> None:
        self._failed.pop(block_hash, None)
