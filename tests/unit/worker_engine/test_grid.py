"""The grid: where pieces end, what of them is kept and hit, and what a step computes on it."""

from collections.abc import Sequence

import pytest

from worker.batch import Pending, plan_whole_pieces
from worker.grid import NO_GRID, Grid

GRID = Grid(3, 8)


def test_pieces_are_whole_blocks_and_at_least_one() -> None:
    assert Grid.of(31, 8) == GRID
    assert Grid.of(24, 8).piece_tokens == 24
    assert Grid.of(5, 8) == Grid(1, 8)


@pytest.mark.parametrize(("blocks", "whole"), [(0, 0), (2, 0), (3, 3), (5, 3), (6, 6)])
def test_hits_end_where_pieces_do(blocks: int, whole: int) -> None:
    assert GRID.whole(blocks) == whole
    assert NO_GRID.whole(blocks) == blocks


@pytest.mark.parametrize(
    ("blocks", "prompt_tokens", "kept"),
    [(2, 100, 0), (3, 100, 3), (5, 100, 3), (6, 47, 3), (6, 48, 6), (9, 48, 6), (9, 23, 0)],
)
def test_only_whole_pieces_of_a_prompt_are_kept(blocks: int, prompt_tokens: int, kept: int) -> None:
    assert GRID.kept(blocks, prompt_tokens) == kept
    assert NO_GRID.kept(blocks, prompt_tokens) == blocks


@pytest.mark.parametrize(
    ("computed", "known", "end"), [(0, 100, 24), (24, 100, 48), (24, 30, 30), (30, 100, 48)]
)
def test_a_piece_ends_on_the_grid_or_with_what_is_known(
    computed: int, known: int, end: int
) -> None:
    assert GRID.piece_end(computed, known) == end


DECODE = Pending(40, 41)


@pytest.mark.parametrize(
    ("pendings", "step_tokens", "ends"),
    [
        ([Pending(0, 100)], 24, [24]),
        # Whatever decodes, the first piece is whole.
        ([DECODE, Pending(0, 100), DECODE], 24, [41, 24, 41]),
        # A second one only as a whole, and nobody passes it.
        ([Pending(0, 100), Pending(0, 100)], 47, [24, 0]),
        ([Pending(0, 100), Pending(0, 100), Pending(48, 50)], 48, [24, 24, 48]),
        ([Pending(0, 100), Pending(0, 100), Pending(48, 50)], 30, [24, 0, 48]),
        ([Pending(0, 100), Pending(48, 50)], 26, [24, 50]),
        # The one that must get on goes first.
        ([Pending(0, 100), Pending(24, 100, must_advance=True)], 24, [0, 48]),
    ],
)
def test_a_step_has_whole_pieces(
    pendings: Sequence[Pending], step_tokens: int, ends: list[int]
) -> None:
    assert plan_whole_pieces(pendings, step_tokens, GRID) == ends
