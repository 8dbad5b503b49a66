"""Copies that are summed on the way: every size, seed and content, beside the library's sums."""

import threading

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from worker import copy_kernel
from worker.copy_kernel import LINE_BYTES, CopyKernel, KernelError, load_kernel

SEEDS = st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2**63, 2**64 - 1])


@pytest.fixture(scope="module")
def kernel() -> CopyKernel:
    return CopyKernel()


def address(array: NDArray[np.uint8]) -> int:
    return array.ctypes.data


def room(count: int, size: int) -> NDArray[np.uint8]:
    """Of `count` blocks on lines, with a line before and behind each."""
    whole = np.full((count + 1) * (size + 2 * LINE_BYTES), 0xAA, np.uint8)
    gap = -address(whole) % LINE_BYTES
    return whole[gap : gap + count * (size + 2 * LINE_BYTES)].reshape(count, -1)


@given(
    lines=st.integers(4, 200),
    seeds=st.lists(SEEDS, min_size=1, max_size=4),
    gap=st.integers(0, LINE_BYTES - 1),
    content=st.sampled_from(["random", "zeros", "ones"]),
    random_seed=st.integers(0, 2**32),
)
def test_copies_are_exact_and_sums_are_the_librarys(
    kernel: CopyKernel, lines: int, seeds: list[int], gap: int, content: str, random_seed: int
) -> None:
    size, count = lines * LINE_BYTES, len(seeds)
    shape = (count, size)
    sources = np.empty(count * size + gap, np.uint8)[gap:].reshape(shape)
    sources[:] = {
        "random": np.random.default_rng(random_seed).integers(0, 256, shape, np.uint8),
        "zeros": np.zeros(shape, np.uint8),
        "ones": np.full(shape, 255, np.uint8),
    }[content]
    before = sources.copy()
    targets = room(count, size)
    to = np.array([address(target) + LINE_BYTES for target in targets], np.uint64)
    assert kernel.fits(size, to)
    sums = kernel.copy(
        np.array([address(source) for source in sources], np.uint64),
        to,
        size,
        np.array(seeds, np.uint64),
    )
    assert sums == [
        xxhash.xxh3_64_intdigest(source.data, seed)
        for source, seed in zip(before, seeds, strict=True)
    ]
    assert np.array_equal(targets[:, LINE_BYTES:-LINE_BYTES], before)
    assert np.array_equal(sources, before)
    assert (targets[:, :LINE_BYTES] == 0xAA).all()
    assert (targets[:, -LINE_BYTES:] == 0xAA).all()


@given(size=st.integers(0, 2000), gap=st.integers(0, 128))
def test_what_does_not_fit_is_said(kernel: CopyKernel, size: int, gap: int) -> None:
    fits = kernel.fits(size, np.array([4096, 4096 + gap], np.uint64))
    assert fits == (size >= 256 and size % 64 == 0 and gap % 64 == 0)


def test_a_sum_is_of_what_was_written_whoever_writes_to_the_source_meanwhile(
    kernel: CopyKernel,
) -> None:
    size = 64 * 1024
    source, target = room(1, size)[0, :size], room(1, size)[0, :size]
    stop = threading.Event()
    changes = 0

    def scribble() -> None:
        nonlocal changes
        while not stop.is_set():
            source[:] = changes % 256
            changes += 1

    where, to = (np.array([address(each)], np.uint64) for each in (source, target))
    thread = threading.Thread(target=scribble)
    thread.start()
    try:
        for seed in range(4000):
            (found,) = kernel.copy(where, to, size, np.array([seed], np.uint64))
            assert found == xxhash.xxh3_64_intdigest(target.data, seed)
    finally:
        stop.set()
        thread.join()
    assert changes > 1


def test_a_kernel_that_sums_otherwise_than_the_library_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(copy_kernel, "_MIX", copy_kernel._MIX ^ 2)
    with pytest.raises(KernelError, match="otherwise than the library"):
        CopyKernel()
    copy_kernel._made.cache_clear()
    try:
        assert load_kernel() is None
        assert "one after the other" in caplog.text
    finally:
        copy_kernel._made.cache_clear()


def test_threads_that_need_it_at_once_get_the_same() -> None:
    copy_kernel._made.cache_clear()
    found: list[CopyKernel | None] = []
    start = threading.Barrier(8)

    def need() -> None:
        start.wait()
        found.append(load_kernel())

    threads = [threading.Thread(target=need) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert found[0] is not None
