"""Which runs of blocks are extents, for any way that a chain grows."""

from hypothesis import given
from hypothesis import strategies as st

from storage.shared.levels import EXTENT_BYTES, Extent, begins, completed, level_sizes

SIZES = (1, 4, 16)


def written(ends: list[int]) -> list[Extent]:
    first, found = 0, []
    for end in ends:
        found += completed(SIZES, first, end, lambda _first, _end: True)
        first = end
    return found


def reached(there: set[Extent], position: int, end: int) -> int:
    for level in range(len(SIZES) - 1, -1, -1):
        for at in begins(SIZES, level, position, end):
            extent = Extent(at, at + SIZES[level])
            if extent not in there:
                break
            assert extent.start <= position
            position = max(position, extent.end)
    return position


def test_an_extent_stays_within_its_bytes_but_for_a_single_block() -> None:
    assert level_sizes(1) == (1, 4, 16)
    assert level_sizes(EXTENT_BYTES // 16) == (1, 4, 16)
    assert level_sizes(EXTENT_BYTES // 16 + 1) == (1, 4)
    assert level_sizes(EXTENT_BYTES) == level_sizes(EXTENT_BYTES + 1) == (1,)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=8, unique=True).map(sorted))
def test_every_block_is_in_an_extent_and_none_is_written_twice_at_one_size(
    ends: list[int],
) -> None:
    extents = written(ends)
    assert len(set(extents)) == len(extents)
    assert set().union(*(range(each.start, each.end) for each in extents)) == set(range(ends[-1]))
    assert all(each.size in SIZES and each.start % each.size == 0 for each in extents)
    # Each level once, at worst.
    assert sum(each.size for each in extents) <= len(SIZES) * ends[-1]


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 299))
def test_a_chain_that_parts_at_a_stop_finds_all_before_it(end: int, stop: int, first: int) -> None:
    end = max(end, stop)
    first = min(first, end - 1)
    there = {*written([first] if first else [])}
    there.update(completed(SIZES, first, end, lambda _first, _end: True, [stop]))
    assert reached(there, 0, stop) == stop
    assert reached(there, 0, end) == end


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=8, unique=True).map(sorted),
    st.integers(0, 299),
)
def test_level_after_level_leads_to_the_last_block(ends: list[int], position: int) -> None:
    assert reached(set(written(ends)), min(position, ends[-1]), ends[-1]) == ends[-1]


def test_what_is_not_whole_falls_into_smaller_extents() -> None:
    found = completed(SIZES, 18, 32, lambda start, _end: start >= 18)
    assert found == [Extent(18, 19), Extent(19, 20), *(Extent(n, n + 4) for n in (20, 24, 28))]
