"""A block that lies in two places when the index is lost: the newest copy that is whole counts.

A re-logging that a power cut tore leaves a newer copy, header and all, whose payload never came.
The acknowledged one is still there and must be the one that is found.
"""

import shutil
from pathlib import Path

import pytest

from storage.ssd.format import segment_path
from storage.ssd.tier import SsdTier
from storage.tier import PAGE_BYTES, BlockRecord, SsdLocation
from tests.ssd.blocks import CAPACITY_BYTES, SEGMENT_BYTES, append, block, read
from tests.ssd.faulty_env import FaultyEnv


def opened(path: Path) -> SsdTier:
    return SsdTier.open(
        path,
        capacity_bytes=CAPACITY_BYTES,
        segment_bytes=SEGMENT_BYTES,
        env=FaultyEnv(refuse_direct=True),
    )


def spoil(path: Path, location: SsdLocation) -> None:
    with segment_path(path, location.segment_id).open("r+b") as file:
        file.seek(location.offset + PAGE_BYTES)
        file.write(bytes(PAGE_BYTES))


@pytest.mark.parametrize("spoilt", ["older", "newer", "none"])
async def test_the_newest_whole_copy_is_found(tmp_path: Path, spoilt: str) -> None:
    tier = opened(tmp_path)
    wanted = block("wanted")
    (older,) = await append(tier, [wanted])
    fillers = [block(f"filler {n}", payload_bytes=4 * PAGE_BYTES) for n in range(3)]
    await append(tier, fillers)
    (newer,) = await tier.relog([(wanted.record, older)])
    assert newer is not None
    assert newer.segment_id != older.segment_id
    await append(tier, [block(f"later {n}", payload_bytes=6 * PAGE_BYTES) for n in range(3)])
    last = max(s.segment_id for s in tier.segments() if s.state == "open")
    assert last not in (older.segment_id, newer.segment_id), "payloads there are checked anyway"
    await tier.close()

    if spoilt != "none":
        spoil(tmp_path, {"older": older, "newer": newer}[spoilt])
    shutil.rmtree(tmp_path / "index")
    again = opened(tmp_path)
    found: dict[BlockRecord, SsdLocation] = dict(again.recovered())
    assert found[wanted.record] == (older if spoilt == "newer" else newer)
    assert await read(again, wanted.record, found[wanted.record]) == wanted.payload
    await again.close()
