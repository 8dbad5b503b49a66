"""What counts as received of a block that comes in frames."""

import pytest

from cache_service.errors import InvalidRangeError
from cache_service.intake import RESERVATIONS_MAX, StreamIntake


@pytest.fixture
def intake() -> StreamIntake:
    intake = StreamIntake()
    intake.open_session("s")
    intake.expect("s", "r", (2, 5), 100)
    return intake


def test_a_reservation_is_whole_when_each_block_is(intake: StreamIntake) -> None:
    assert intake.first_short("s", "r") == 2
    assert not intake.take("s", "r", 2, 100, (0, 60))
    assert intake.take("s", "r", 2, 100, (60, 40))
    assert intake.first_short("s", "r") == 5
    assert intake.take("s", "r", 5, 100, (0, 100))
    assert intake.first_short("s", "r") is None


def test_a_block_may_start_again_from_its_first_byte(intake: StreamIntake) -> None:
    intake.take("s", "r", 2, 100, (0, 60))
    assert not intake.take("s", "r", 2, 100, (0, 50))
    with pytest.raises(InvalidRangeError):
        intake.take("s", "r", 2, 100, (60, 40))
    assert intake.take("s", "r", 2, 100, (50, 50))


@pytest.mark.parametrize(
    ("index", "frame"),
    [(3, (0, 1)), (2, (1, 1)), (2, (-1, 1)), (2, (0, 0)), (2, (0, 101))],
)
def test_a_frame_that_is_not_the_next_one_changes_nothing(
    intake: StreamIntake, index: int, frame: tuple[int, int]
) -> None:
    with pytest.raises(InvalidRangeError):
        intake.take("s", "r", index, 100, frame)
    assert intake.take("s", "r", 2, 100, (0, 100))


def test_a_repeated_reserve_keeps_what_came_in(intake: StreamIntake) -> None:
    intake.take("s", "r", 2, 100, (0, 100))
    intake.expect("s", "r", (2, 5), 100)
    assert intake.first_short("s", "r") == 5


def test_what_is_known_of_a_session_ends_with_it(intake: StreamIntake) -> None:
    assert intake.streams("s")
    intake.close_session("s")
    assert not intake.streams("s")
    assert intake.first_short("s", "r") is None
    with pytest.raises(InvalidRangeError):
        intake.take("s", "r", 2, 100, (0, 100))


def test_forgotten_reservations_do_not_pile_up(intake: StreamIntake) -> None:
    for number in range(RESERVATIONS_MAX):
        intake.expect("s", f"later-{number}", (0,), 10)
    with pytest.raises(InvalidRangeError):
        intake.take("s", "r", 2, 100, (0, 100))
    assert intake.take("s", "later-1", 0, 10, (0, 10))
