"""The pure parts of the scheduler: who is admitted, what a step computes, whom to put back, whose
turn it is."""

from typing import Any

import pytest

from worker.admission import (
    Candidate,
    admission_order,
    pages_needed,
    pages_soon,
)
from worker.batch import Pending, plan_pieces, step_size
from worker.fair_share import IDLE_TENANTS_MAX, FairShare
from worker.preemption import Victim, choose_victim

# Admission


def order(candidates: list[Candidate], **more: Any) -> tuple[int, ...]:
    return admission_order(candidates, age_limit_seconds=5.0, **more).positions


def test_longest_resident_prefix_goes_first_then_deadline_then_arrival() -> None:
    candidates = [Candidate(n, 1.0, blocks, False) for n, blocks in enumerate([0, 4, 4, 9])]
    candidates.append(Candidate(4, 1.0, 4, False, deadline=7.0))
    found = admission_order(candidates, age_limit_seconds=5.0)
    assert found.positions == (3, 4, 1, 2, 0)
    assert not found.strict
    assert found.oldest is None


def test_overdue_requests_go_first_by_arrival_and_may_not_be_passed() -> None:
    candidates = [
        Candidate(0, 9.0, 0, False),
        Candidate(1, 8.0, 5, False),
        Candidate(2, 1.0, 50, False),
    ]
    found = admission_order(candidates, age_limit_seconds=5.0)
    assert found.positions == (0, 1, 2)
    assert found.strict == {0, 1}
    assert found.oldest == 0


def test_who_finds_its_next_block_soon_stands_back_however_long_it_waits() -> None:
    candidates = [
        Candidate(0, 9.0, 0, True),
        Candidate(1, 8.0, 5, False),
        Candidate(2, 1.0, 60, True),
    ]
    found = admission_order(candidates, age_limit_seconds=5.0, oldest_first=True)
    assert found.positions == (1,)
    assert found.strict == {1}
    assert found.oldest == 1


def test_priority_goes_before_age_and_share_and_share_before_age() -> None:
    candidates = [
        Candidate(0, 9.0, 9, False, priority=0, turn=900.0),
        Candidate(1, 9.0, 9, False, priority=-1, turn=0.0),
        Candidate(2, 1.0, 0, False, priority=0, turn=100.0),
        Candidate(3, 1.0, 0, False, priority=2, turn=5000.0),
    ]
    assert order(candidates) == (3, 2, 0, 1)


def test_who_waited_longest_goes_first_when_it_was_passed_often_enough() -> None:
    candidates = [
        Candidate(0, 4.0, 9, False, priority=2),
        Candidate(1, 7.0, 0, False, priority=-2, turn=1e9),
        Candidate(2, 6.0, 0, False, priority=-2, turn=0.0),
        Candidate(3, 1.0, 0, False, priority=2),
    ]
    assert order(candidates, oldest_first=True) == (1, 0, 3, 2)
    assert order(candidates) == (0, 3, 2, 1)
    assert order(candidates[::3], oldest_first=True) == (0, 3), "none is past the limit"


def test_page_need_counts_shared_pages_once_and_no_place_for_the_last_token() -> None:
    assert pages_needed(8, 1, 1, 8) == 1
    assert pages_needed(8, 2, 1, 8) == 2
    assert pages_needed(9, 1, 4, 8) == 1 + 4
    assert pages_needed(40, 9, 3, 8) == 5 + 3


@pytest.mark.parametrize(
    ("prompt", "known", "pages"),
    [
        (8, [8], 1 + 1),
        (9, [9], 2 + 1),
        (9, [9, 9, 9], 1 + 3 * (1 + 1)),
        (16, [30, 17], 2 + (2 + 1) + (1 + 1)),
        (3, [3, 4], 0 + (1 + 1) + (1 + 1)),
    ],
)
def test_pages_soon_are_those_of_known_tokens_and_one_for_each_sequence(
    prompt: int, known: list[int], pages: int
) -> None:
    assert pages_soon(prompt, known, 8) == pages


# A step


def test_pieces_end_on_the_step_grid_and_share_what_decodes_leave() -> None:
    prompts = [Pending(24, 100), Pending(0, 100)]
    decodes = [Pending(n, n + 1) for n in range(5)]
    assert plan_pieces(prompts, step_tokens=32, block_tokens=8) == [32, 24]
    ends = plan_pieces([*decodes, *prompts], step_tokens=32, block_tokens=8)
    assert ends == [1, 2, 3, 4, 5, 32, 16]


def test_a_piece_advances_however_many_decode() -> None:
    decodes = [Pending(9, 10)] * 500
    ends = plan_pieces([*decodes, Pending(8, 100)], step_tokens=32, block_tokens=8)
    assert ends == [10] * 500 + [16]


def test_last_piece_ends_with_what_is_known() -> None:
    assert plan_pieces([Pending(32, 37)], step_tokens=32, block_tokens=8) == [37]


@pytest.mark.parametrize(
    ("pendings", "ends"),
    [
        ([Pending(0, 100), Pending(0, 100, must_advance=True)], [24, 8]),
        ([Pending(0, 100), Pending(24, 27, must_advance=True)], [24, 27]),
        ([Pending(0, 100), Pending(8, 9, must_advance=True)], [24, 9]),
        ([Pending(0, 100, must_advance=True), Pending(0, 100)], [32, 0]),
    ],
)
def test_the_one_that_must_get_on_has_a_block_whoever_is_before_it(
    pendings: list[Pending], ends: list[int]
) -> None:
    assert plan_pieces(pendings, step_tokens=32, block_tokens=8) == ends


@pytest.mark.parametrize(
    ("pendings", "prompt_step_tokens", "size"),
    [
        ([Pending(0, 100), Pending(24, 100)], 64, 64),
        ([Pending(0, 100), Pending(9, 10)], 64, 32),
        ([Pending(9, 10)], 64, 32),
        ([Pending(0, 100)], 16, 32),
        ([Pending(0, 100)], 0, 32),
    ],
)
def test_a_step_is_larger_only_where_nobody_decodes(
    pendings: list[Pending], prompt_step_tokens: int, size: int
) -> None:
    assert step_size(pendings, 32, prompt_step_tokens) == size


# Whom to put back


def victim(position: int, **more: Any) -> Victim:
    values = {"priority": 0, "keeps": True, "turn": 0.0, "admitted": position}
    return Victim(position, **{**values, "must_advance": False, **more})


@pytest.mark.parametrize(
    ("running", "chosen"),
    [
        ([], None),
        ([victim(0, must_advance=True)], None),
        ([victim(0, must_advance=True), victim(1, priority=2)], 1),
        ([victim(0), victim(1), victim(2)], 2),
        ([victim(0), victim(1, turn=9.0), victim(2)], 1),
        ([victim(0), victim(1, turn=9.0, keeps=False), victim(2)], 2),
        ([victim(0), victim(1, keeps=False, priority=-1), victim(2)], 1),
        ([victim(0, priority=-2), victim(1), victim(2, priority=-1)], 0),
    ],
)
def test_lowest_priority_then_who_keeps_then_who_is_over_its_share_then_the_last(
    running: list[Victim], chosen: int | None
) -> None:
    assert choose_victim(running) == chosen


# Fair share


def serve(shares: FairShare, tenant: str, tokens: int) -> None:
    shares.charge(tenant, tokens)
    shares.computed(tokens)


def test_tenants_with_work_get_equal_tokens_whatever_the_size_of_their_requests() -> None:
    shares, given = FairShare(), {"small": 0, "large": 0, "three": 0}
    for tenant in given:
        shares.enter(tenant)
    for _ in range(900):
        tenant = min(given, key=shares.turn)
        tokens = {"small": 10, "large": 1000, "three": 300}[tenant]
        given[tenant] += tokens
        serve(shares, tenant, tokens)
    assert max(given.values()) - min(given.values()) <= 1000


def test_what_a_tenant_used_alone_is_no_debt_and_idling_saves_nothing_up() -> None:
    shares = FairShare()
    shares.enter("busy")
    serve(shares, "busy", 10_000)
    shares.enter("new")
    assert shares.turn("new") == shares.turn("busy") == 10_000
    serve(shares, "busy", 500)
    shares.leave("new")
    serve(shares, "busy", 500)
    shares.enter("new")
    assert shares.turn("new") == 10_000 + 500 / 2 + 500


def test_what_was_used_beside_others_is_owed_when_a_tenant_comes_back() -> None:
    shares = FairShare()
    shares.enter("other")
    shares.enter("greedy")
    serve(shares, "greedy", 1000)
    shares.leave("greedy")
    shares.enter("greedy")
    assert shares.turn("other") < shares.turn("greedy")


def test_new_tenants_without_end_pass_one_that_waits_for_so_much_work_only() -> None:
    shares = FairShare()
    shares.enter("first")
    shares.enter("waiting")
    serve(shares, "waiting", 5000)
    shares.leave("first")
    passed = 0
    for n in range(10_000):
        shares.enter(f"t{n}")
        if shares.turn("waiting") <= shares.turn(f"t{n}"):
            break
        serve(shares, f"t{n}", 100)
        passed += 100
        shares.leave(f"t{n}")
    assert 2500 <= passed <= 5100


def test_only_so_many_idle_tenants_are_remembered_and_those_that_owe_most_are() -> None:
    shares = FairShare()
    shares.enter("always")
    for n in range(IDLE_TENANTS_MAX + 1):
        shares.enter(f"t{n}")
        shares.charge(f"t{n}", 1_000_000 + n)
        shares.leave(f"t{n}")
    for tenant, owes in (("t0", False), (f"t{IDLE_TENANTS_MAX}", True)):
        shares.enter(tenant)
        assert (shares.turn(tenant) > 0) == owes
