"""The pure parts: admission order, page needs, step plans."""

from worker.admission import Candidate, admission_order, pages_needed
from worker.scheduler import PromptProgress, plan_prompts


def test_longest_resident_prefix_goes_first_then_arrival() -> None:
    candidates = [Candidate(n, 1.0, blocks, False) for n, blocks in enumerate([0, 4, 4, 9])]
    order = admission_order(candidates, age_limit_seconds=5.0)
    assert order.positions == (3, 1, 2, 0)
    assert order.strict_count == 0


def test_overdue_requests_go_first_by_arrival_and_may_not_be_passed() -> None:
    candidates = [
        Candidate(0, 9.0, 0, True),
        Candidate(1, 8.0, 5, False),
        Candidate(2, 1.0, 50, False),
        Candidate(3, 1.0, 60, True),
    ]
    order = admission_order(candidates, age_limit_seconds=5.0)
    assert order.positions == (0, 1, 2)
    assert order.strict_count == 2


def test_page_need_counts_shared_pages_once_and_no_place_for_the_last_token() -> None:
    assert pages_needed(8, 1, 1, 8) == 1
    assert pages_needed(8, 2, 1, 8) == 2
    assert pages_needed(9, 1, 4, 8) == 1 + 4
    assert pages_needed(40, 9, 3, 8) == 5 + 3


def test_prompts_end_pieces_on_the_step_grid_and_share_what_decodes_leave() -> None:
    prompts = [PromptProgress(24, 100), PromptProgress(0, 100)]
    assert plan_prompts(prompts, 0, step_tokens=32, block_tokens=8) == [32, 24]
    assert plan_prompts(prompts, 5, step_tokens=32, block_tokens=8) == [32, 16]


def test_a_prompt_advances_however_many_samples_decode() -> None:
    assert plan_prompts([PromptProgress(8, 100)], 500, step_tokens=32, block_tokens=8) == [16]


def test_last_piece_ends_with_the_prompt() -> None:
    assert plan_prompts([PromptProgress(32, 37)], 0, step_tokens=32, block_tokens=8) == [37]
