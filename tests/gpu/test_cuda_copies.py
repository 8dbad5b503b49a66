"""The same promises as `tests/unit/worker/test_device_pages.py` on a CUDA device, where there is
one; and that nothing breaks where there is none."""

import fcntl
import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from kvtier.keys import BlockHash
from tests.page_kinds import in_turn
from worker.cuda_copies import CudaCopies, cuda_registered_memory
from worker.device_copies import copies_for, registered_for
from worker.device_pages import DeviceLanding, DeviceSource
from worker.transfer import ArenaMap, page_checksum

BLOCK_BYTES = 1 << 20
COUNT = 100
"""More than are under way at a time."""
CHAIN = [BlockHash(i.to_bytes(32, "big")) for i in range(COUNT)]

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a CUDA device")
def test_without_a_device_it_is_there_and_refuses_when_it_is_used() -> None:
    memory = cuda_registered_memory(torch.device("cuda"))
    assert memory.registered_bytes == 0
    with pytest.raises((RuntimeError, AssertionError)):
        CudaCopies(torch.zeros(2, 8), memory).fence()


@pytest.fixture
def arena() -> Iterator[ArenaMap]:
    size = COUNT * BLOCK_BYTES
    descriptor = os.memfd_create("test-arena", os.MFD_ALLOW_SEALING)
    os.truncate(descriptor, size)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    yield ArenaMap(descriptor, size, BLOCK_BYTES)
    os.close(descriptor)


@on_cuda
@pytest.mark.gpu
@pytest.mark.parametrize("registers", [False, True])
def test_slabs_come_into_pages_and_pages_go_out(arena: ArenaMap, registers: bool) -> None:
    device = torch.device("cuda")
    memory = registered_for(device)
    assert memory is not None
    if registers:
        assert memory.add(arena, lambda: True) == ""
    data = torch.zeros(COUNT, BLOCK_BYTES // 2, dtype=torch.bfloat16, device=device)
    copies = copies_for(data, memory)
    assert isinstance(copies, CudaCopies)
    slabs = [arena.slab(i * BLOCK_BYTES) for i in range(COUNT)]
    generator = np.random.default_rng(0)
    for slab in slabs:
        slab[:] = generator.integers(0, 256, BLOCK_BYTES, dtype=np.uint8)
    assert copies.reads(slabs[5]) == registers
    landing = DeviceLanding(copies, range(COUNT))
    for index, (block, slab) in enumerate(zip(CHAIN, slabs, strict=True)):
        assert landing.take(index, [block], [slab], [page_checksum(block, slab)]) == 1
    assert landing.settle(0, COUNT, in_turn) == COUNT
    assert torch.equal(data.view(torch.uint8).cpu(), torch.from_numpy(np.stack(slabs)))
    source = DeviceSource(copies, range(COUNT))
    with source.lend(range(COUNT)) as lent:
        assert all(np.array_equal(page, slab) for page, slab in zip(lent, slabs, strict=True))
    landing.revoke()
    assert landing.quiet


@on_cuda
@pytest.mark.gpu
def test_a_load_waits_for_what_was_asked_of_the_device_before(arena: ArenaMap) -> None:
    data = torch.zeros(COUNT, BLOCK_BYTES, dtype=torch.uint8, device="cuda")
    copies = copies_for(data)
    assert copies is not None
    slab = arena.slab(0)
    slab[:] = 7
    for _ in range(50):
        torch.cuda._sleep(20_000_000)
        data.fill_(9)
        landing = DeviceLanding(copies, [3])
        assert landing.take(0, CHAIN[:1], [slab], [page_checksum(CHAIN[0], slab)]) == 1
        assert landing.settle(0, 1, in_turn) == 1
        assert bool((data[3] == 7).all())
