"""A process that stores, forgets and recycles for ever, and says what was acknowledged.

    python -m tests.ssd.appender DIR FIRST

Lines on standard output, each after the call returned, except "forgetting":
    open                       the tier is ready
    stored N                   block_number(N) is acknowledged
    forgetting N / forgot N    about to be forgotten / acknowledged as forgotten
It is meant to be killed.
"""

import asyncio
import sys
from pathlib import Path

from storage.ssd.tier import SsdTier
from storage.tier import SegmentId
from tests.ssd.blocks import CAPACITY_BYTES, SEGMENT_BYTES, Block, block

BATCH_BLOCKS = 3


def block_number(number: int) -> Block:
    """Blocks come in chains of three; a chain is one batch."""
    parent = block_number(number - 1).hash if number % BATCH_BLOCKS else None
    size = 3000 + number % 5 * 2000
    return block(number, parent, size) if parent else block(number, payload_bytes=size)


async def main(directory: Path, first: int) -> None:
    tier = SsdTier.open(
        directory, capacity_bytes=CAPACITY_BYTES, segment_bytes=SEGMENT_BYTES, reader_threads=1
    )
    numbers = {block_number(n).hash: n for n in range(first)}
    where: dict[int, set[int]] = {}
    for record, location in tier.recovered():
        where.setdefault(location.segment_id, set()).add(numbers[record.block_hash])
    say("open")
    while True:
        if tier.free_segment_count < 2:
            await free_one(tier, where)
        batch = [block_number(first + i) for i in range(BATCH_BLOCKS)]
        locations = await tier.append([(b.record, b.view()) for b in batch])
        for i, location in enumerate(locations):
            where.setdefault(location.segment_id, set()).add(first + i)
            say(f"stored {first + i}")
        first += BATCH_BLOCKS


async def free_one(tier: SsdTier, where: dict[int, set[int]]) -> None:
    """Forgets whole chains, wherever the rest of them lies, and recycles the segment."""
    sealed = [s.segment_id for s in tier.segments() if s.state == "sealed"]
    victim = min(sealed, key=lambda i: min(where.get(i, {0})))
    heads = {n - n % BATCH_BLOCKS for n in where.pop(victim, set())}
    chains = sorted(head + i for head in heads for i in range(BATCH_BLOCKS))
    for number in chains:
        say(f"forgetting {number}")
    await tier.forget([block_number(n).hash for n in chains])
    for number in chains:
        say(f"forgot {number}")
    for rest in where.values():
        rest.difference_update(chains)
    await tier.recycle(SegmentId(victim))


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
