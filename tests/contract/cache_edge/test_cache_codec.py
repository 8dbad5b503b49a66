"""A service whose SSD encodes: the same bytes come back, also after a restart without the codec."""

from typing import Any

import numpy as np
import pytest

from kvtier.blocks import Tier
from storage.tier import PAGE_BYTES

SSD = {"capacity_bytes": "64MiB", "segment_bytes": "16MiB"}


def half_floats(count: int, size: int) -> list[Any]:
    """As 16-bit floats are: every second byte says little."""
    pages = []
    for number in range(count):
        page = np.random.default_rng(number).integers(0, 256, size, dtype=np.uint8)
        page[1::2] = 0x3C + number % 3
        pages.append(page)
    return pages


@pytest.mark.parametrize("codec", ["planes_lz4", "zstd"])
def test_encoded_blocks_come_back_after_a_restart(
    make_service: Any, open_peer: Any, tools: Any, short_directory: Any, codec: str
) -> None:
    directory = short_directory()
    service = make_service(directory, ssd={**SSD, "codec": codec})
    peer = open_peer(service, "shared_memory")
    chain = tools.fresh_chain(8)
    pages = half_floats(8, tools.block_bytes)
    reserved = peer.reserve(chain)
    assert peer.commit(reserved, peer.write(reserved, chain, pages)) == 8
    stats = service.until(lambda stats: stats.tiers[1].block_count == 8)
    ssd = stats.tiers[1]
    assert ssd.payload_bytes == 8 * tools.block_bytes
    assert ssd.used_bytes < 0.7 * ssd.payload_bytes + 9 * PAGE_BYTES
    assert (stats.ssd_codec.name, stats.ssd_codec.reason) == (codec, "set")
    service.stop()

    again = make_service(directory, ssd=SSD)
    stats = again.stats()
    assert (stats.recovery.kept_count, stats.ssd_codec.name) == (8, "none")
    reader = open_peer(again, "stream")
    assert not reader.acquire_resident(chain).ByteSize(), "it would have to be loaded"
    assert again.stats().lease_count == 0
    events = reader.acquire(chain)
    assert events[0].match.tiers == bytes([Tier.SSD] * 8)
    assert reader.read(events) == [page.tobytes() for page in pages]
