"""Mapping a memory file where huge pages can lie: place, lifetime, content."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import kvtier.memory
from kvtier.memory import HUGE_PAGE_BYTES, collapse, huge_bytes, mapped, populate

SIZE = 4 * HUGE_PAGE_BYTES + 12_288


@pytest.fixture
def file() -> Iterator[int]:
    fd = os.memfd_create("kvtier-test")
    os.ftruncate(fd, SIZE)
    yield fd
    os.close(fd)


def address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).__array_interface__["data"][0])


def mappings() -> int:
    return Path("/proc/self/maps").read_text().count("kvtier-test")


def test_a_mapping_begins_where_a_huge_page_can(file: int) -> None:
    views = [mapped(file, SIZE) for _ in range(5)]
    assert {address(view) % HUGE_PAGE_BYTES for view in views} == {0}
    assert all(view.nbytes == SIZE and not view.readonly for view in views)


def test_two_mappings_of_a_file_are_the_same_bytes(file: int) -> None:
    one, other = mapped(file, SIZE), mapped(file, SIZE)
    one[SIZE - 3 :] = b"end"
    assert bytes(other[SIZE - 3 :]) == b"end"


def test_a_mapping_lives_as_long_as_any_view_of_it(file: int) -> None:
    view = mapped(file, SIZE)
    part = np.frombuffer(view[HUGE_PAGE_BYTES:], np.uint8)
    del view
    assert mappings() == 1
    assert part[-1] == 0
    del part
    assert mappings() == 0


def test_what_cannot_be_mapped_is_an_error_and_takes_no_room(file: int) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        mapped(2**20, SIZE)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        mapped(file, 1 << 60)
    assert mappings() == 0


def test_content_is_kept_when_pages_become_huge(file: int) -> None:
    view = mapped(file, SIZE)
    content = np.random.default_rng(5).bytes(SIZE)
    view[:] = content
    whole = 4 * HUGE_PAGE_BYTES
    assert huge_bytes(view) == 0
    refused = 0
    try:
        collapse(view[:whole])
    except OSError as error:
        refused = error.errno or 0
    # A kernel that cannot, or that has none left, says so and changes nothing.
    assert refused in (0, errno.EINVAL, errno.ENOMEM, errno.EAGAIN, errno.EBUSY)
    assert refused or huge_bytes(view) == whole
    assert view == content


@pytest.mark.parametrize("advice", [kvtier.memory._MADV_POPULATE_WRITE, 9999])
def test_every_page_is_there_once_populated(
    file: int, monkeypatch: pytest.MonkeyPatch, advice: int
) -> None:
    """Also where the kernel does not know how to be asked for it."""
    monkeypatch.setattr(kvtier.memory, "_MADV_POPULATE_WRITE", advice)
    view = mapped(file, SIZE)
    assert os.fstat(file).st_blocks == 0
    populate(view)
    assert os.fstat(file).st_blocks * 512 == SIZE
