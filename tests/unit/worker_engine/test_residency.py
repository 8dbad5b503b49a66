"""Pages that are reserved are there when they are wanted, whoever else takes some."""

from dataclasses import replace
from typing import Any

import torch

from kvtier.keys import PUBLIC_SCOPE, BlockChain
from worker.kv_pages import KvPages
from worker.live_request import LiveRequest
from worker.page_pool import PagePool
from worker.prompt_account import PromptAccount
from worker.requests import CacheMode, EngineRequest, FinishReason, RequestId
from worker.residency import Residency

PROMPT = tuple(range(3, 43))


def make(bench: Any, page_count: int) -> tuple[Residency, Any]:
    kv = KvPages(bench.loaded.layout, page_count, torch.device("cpu"))
    residency = Residency(kv, PagePool(page_count, page_count), lambda: 0.0)

    def request(name: str, prompt: tuple[int, ...], new: int, samples: int = 1) -> LiveRequest:
        asked = EngineRequest(RequestId(name), prompt, new, PUBLIC_SCOPE, sample_count=samples)
        chain = BlockChain(bench.loaded.namespace, PUBLIC_SCOPE)
        chain.extend(prompt)
        live = LiveRequest(asked, lambda event: None, chain, 0.0, PromptAccount(len(prompt), 8))
        live.sequences.append(residency.first_sequence(live))
        return live

    return residency, request


def test_what_is_reserved_is_room_for_its_request_alone(bench: Any) -> None:
    residency, request = make(bench, 10)
    reserving = request("a", PROMPT[:8], 25)  # 1 page now, 4 in the end
    assert residency.missing_pages(reserving, 0, reserve=True) <= 0
    residency.admit(reserving, reserve=True)
    assert (residency.room(), residency.room(reserving)) == (6, 9)
    residency.grow(reserving.leader, 17)
    assert (residency.room(), residency.room(reserving)) == (6, 7)
    other = request("b", PROMPT[::-1], 8)  # 5 pages now, 6 in the end
    assert residency.missing_pages(other, 0, reserve=False) == 0
    assert residency.missing_pages(other, 1, reserve=False) == 1
    residency.admit(other, reserve=False)
    residency.check_integrity([reserving, other])
    residency.grow(reserving.leader, 32)
    assert residency.room() == residency.room(reserving) == 1
    residency.give_back(reserving)
    assert residency.room() == 5
    residency.check_integrity([other])


def test_samples_that_have_not_forked_are_reserved_for_and_those_that_ended_are_not(
    bench: Any,
) -> None:
    residency, request = make(bench, 20)
    live = request("a", PROMPT[:12], 13, samples=3)  # 2 pages now, 1 + 3 x 2 in the end
    residency.admit(live, reserve=True)
    assert residency.room() == 20 - 7
    live.leader.has(12)
    residency.seal(live, live.leader)
    residency.fork(live)
    assert residency.room() == 20 - 7
    assert live.pages_held(8) == 1 + 3
    live.sequences[1].give_back()
    live.sequences[1].finish = FinishReason.LENGTH
    assert residency.room() == 20 - 5
    residency.check_integrity([live])


def test_a_fork_without_a_page_for_the_copy_computes_its_tail_again(bench: Any) -> None:
    residency, request = make(bench, 3)
    live = request("a", PROMPT[:12], 2, samples=2)  # 2 pages now, 1 + 2 x 1 in the end
    residency.admit(live, reserve=False)
    live.leader.has(12)
    other = request("b", PROMPT[20:25], 1)
    residency.admit(other, reserve=False)
    residency.fork(live)
    first, second = live.sequences
    assert (first.computed, second.computed, second.reached) == (12, 8, 12)
    assert second.table.pages == first.table.pages[:1]
    residency.check_integrity([live, other])


def test_a_block_that_one_sample_wrote_is_not_written_again_by_another(bench: Any) -> None:
    """Samples say the same; one was behind when the other's blocks left."""
    residency, request = make(bench, 8)
    live = request("a", PROMPT[:12], 13, samples=2)
    residency.admit(live, reserve=False)
    live.leader.has(12)
    assert residency.seal(live, live.leader) == 1
    residency.fork(live)
    for sequence in live.sequences:
        for token in PROMPT[20:30]:
            sequence.draw(token)
    first, second = live.sequences
    residency.grow(first, 16)
    first.has(16)
    assert residency.seal(live, first) == 1
    first.finish = FinishReason.STOP
    first.give_back()
    other = request("b", PROMPT[::-1], 1)
    residency.admit(other, reserve=False)
    residency.grow(other.leader, 6 * 8)  # all but the two that the other sample holds
    residency.give_back(other)
    assert residency.resident_blocks(first.chain.hashes) == 1
    residency.grow(second, 16)
    second.has(16)
    assert residency.seal(live, second) == 0
    assert residency.resident_blocks(first.chain.hashes) == 2
    residency.check_integrity([live])


def test_samples_take_up_again_no_more_than_others_have_left(bench: Any) -> None:
    """While the first sample loads, another request may reserve what the second has in idle
    pages."""
    residency, request = make(bench, 15)
    live = request("a", PROMPT[:16], 32, samples=2)
    residency.admit(live, reserve=False)
    live.leader.has(16)
    residency.seal(live, live.leader)
    residency.fork(live)
    for token, sequence in enumerate(live.sequences):
        for _ in range(25):
            sequence.draw(token)
        residency.grow(sequence, 40)
        sequence.has(40)
        residency.seal(live, sequence)
    residency.give_back(live)
    assert residency.admit(live, reserve=False) == 5
    other = request("b", PROMPT[20:28], 48)
    kept_free = live.pages_growing(8)
    assert residency.missing_pages(other, kept_free, reserve=True) == 0
    residency.admit(other, reserve=True)
    residency.join(live)
    residency.check_integrity([live, other])
    second = live.sequences[1]
    assert (len(second.table), second.computed) == (4, 32)
    assert residency.room() == 0


def test_a_sample_holds_its_prompt_once_where_others_made_it_resident(bench: Any) -> None:
    """Its request keeps nothing; another made prompt and completion resident meanwhile."""
    residency, request = make(bench, 15)
    live = request("a", PROMPT[:16], 32, samples=2)
    live.request = replace(live.request, cache_mode=CacheMode.READ_ONLY)
    residency.admit(live, reserve=False)
    live.leader.has(16)
    residency.fork(live)
    for sequence in live.sequences:
        for token in PROMPT[16:40]:
            sequence.draw(token)
    residency.give_back(live)
    assert residency.admit(live, reserve=False) == 0
    other = request("b", PROMPT[:32], 1)
    residency.admit(other, reserve=False)
    other.leader.has(32)
    residency.seal(other, other.leader)
    residency.give_back(other)
    live.leader.has(16)
    residency.join(live)
    assert residency.pool.used_count - residency.pool.idle_count == live.pages_held(8)
    residency.check_integrity([live])
