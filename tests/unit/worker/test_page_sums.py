"""Checksums of pages that are sent: all of them, each by one thread."""

import threading

import numpy as np
import pytest

from kvtier.keys import BlockHash, payload_checksum
from worker import page_sums
from worker.page_sums import PageSums
from worker.transfer import CopyLanes, NonsenseError


def pages_of(count: int, size: int) -> tuple[list[BlockHash], list[memoryview]]:
    generator = np.random.default_rng(count)
    hashes = [BlockHash(generator.bytes(32)) for _ in range(count)]
    return hashes, [memoryview(generator.bytes(size)) for _ in range(count)]


@pytest.mark.parametrize("count", [0, 1, 2, 5, 300])
@pytest.mark.parametrize("size", [1, 4096, page_sums.PART_BYTES + 1])
def test_every_page_has_its_checksum_whoever_takes_it(count: int, size: int) -> None:
    count = min(count, 5) if size > 4096 else count
    hashes, pages = pages_of(count, size)
    right = [payload_checksum(*of) for of in zip(hashes, pages, strict=True)]
    for sent in (0, count // 2, count, count + 1):
        sums = PageSums(hashes, pages)
        sums.sent(sent)
        sums.sent(sent // 2)  # a connection that took over begins further back
        sums.take_all()
        sums.sent(count)
        assert sums.sums == right


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_sender_and_helpers_take_each_page_once(
    lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes, pages = pages_of(400, 64)
    right = [payload_checksum(*of) for of in zip(hashes, pages, strict=True)]
    taken: list[BlockHash] = []
    whole = page_sums.payload_checksums

    def watched(some: list[BlockHash], views: list[memoryview]) -> list[int]:
        taken.extend(some)
        return whole(some, views)

    monkeypatch.setattr(page_sums, "payload_checksums", watched)
    monkeypatch.setattr(page_sums, "PART_BYTES", 3 * 64)
    copies = CopyLanes(lanes)
    for _ in range(20):
        taken.clear()
        sums = PageSums(hashes, pages)
        with copies.beside(sums.take_all):
            for count in range(0, 401, 7):
                sums.sent(count)
        assert sums.sums == right
        assert sorted(taken) == sorted(hashes)
    copies.close()


def test_what_is_not_wanted_any_more_is_left() -> None:
    hashes, pages = pages_of(3, 64)
    sums = PageSums(hashes, pages)
    sums.stop()
    sums.take_all()
    assert sums.sums == [0, 0, 0]


@pytest.mark.parametrize("lanes", [1, 3])
def test_helpers_have_returned_when_the_body_raised(lanes: int) -> None:
    copies = CopyLanes(lanes)
    wanted, running = threading.Event(), 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal running
        with lock:
            running += 1
        wanted.wait(10)
        with lock:
            running -= 1

    def body() -> None:
        with copies.beside(work):
            threading.Timer(0.05, wanted.set).start()
            raise NonsenseError("the body")

    with pytest.raises(NonsenseError):
        body()
    assert running == 0
    copies.close()


@pytest.mark.parametrize("lanes", [1, 2])
def test_what_work_beside_raises_is_raised(lanes: int) -> None:
    copies = CopyLanes(lanes)
    bodies: list[int] = []

    def work() -> None:
        raise NonsenseError("work")

    def body() -> None:
        with copies.beside(work):
            bodies.append(1)

    with pytest.raises(NonsenseError):
        body()
    assert bodies == [1]
    copies.close()
