"""Who waits: looked at within a bound, found again without a look at everything."""

import math
import random
from typing import Any

import pytest

from kvtier.keys import PUBLIC_SCOPE, BlockChain, BlockHash
from worker.admission import CANDIDATES_MAX
from worker.block_table import BlockTable
from worker.deadlines import Deadlines
from worker.live_request import LiveRequest, Phase
from worker.page_pool import PagePool
from worker.prefix_tree import PrefixTree
from worker.prompt_account import PromptAccount
from worker.requests import EngineRequest, RequestId
from worker.waiting_room import WaitingRoom


@pytest.fixture
def waiting(bench: Any) -> Any:
    def make(number: int, **fields: Any) -> LiveRequest:
        request = EngineRequest(RequestId(f"r{number}"), (3,), 1, PUBLIC_SCOPE, **fields)
        chain = BlockChain(bench.loaded.namespace, PUBLIC_SCOPE)
        live = LiveRequest(request, lambda event: None, chain, 0.0, PromptAccount(1, 8))
        live.number = number
        return live

    return make


def numbers(found: list[LiveRequest]) -> list[int]:
    return [live.number for live in found]


def test_priorities_then_turns_then_arrival_and_who_comes_back_has_its_place(waiting: Any) -> None:
    room, turns = WaitingRoom(), {"x": 5.0, "y": 1.0}
    requests = [
        waiting(0, tenant="x"),
        waiting(1, tenant="y"),
        waiting(2, tenant="x", priority=1),
        waiting(3, tenant="x"),
    ]
    for live in requests:
        room.add(live)
    assert numbers(room.candidates(turns.__getitem__)) == [2, 1, 0, 3]
    room.remove(requests[0])
    assert numbers(room.candidates(turns.__getitem__)) == [2, 1, 3]
    room.add(requests[0])
    assert numbers(room.candidates(turns.__getitem__)) == [2, 1, 0, 3]
    for live in requests:
        room.remove(live)
    assert len(room) == 0
    assert room.candidates(turns.__getitem__) == []


def test_a_flood_hides_neither_others_nor_whoever_waited_longest(waiting: Any) -> None:
    room = WaitingRoom()
    room.add(waiting(0, tenant="oldest", priority=-2))
    for number in range(1, 500):
        room.add(waiting(number, tenant="flood"))
    for number in range(500, 505):
        room.add(waiting(number, tenant=f"t{number}"))
    found = numbers(room.candidates(lambda tenant: 0.0 if tenant == "flood" else 1.0))
    assert found[0] == 1
    assert {0, 500, 501, 502, 503, 504} <= set(found)
    assert len(found) == len(set(found)) <= CANDIDATES_MAX + 1


def test_candidates_are_bounded_with_very_many_tenants_too(waiting: Any) -> None:
    room = WaitingRoom()
    for number in range(600):
        room.add(waiting(number, tenant=f"t{number % 200}"))
    found = numbers(room.candidates(lambda tenant: -float(tenant[1:])))
    assert len(found) == CANDIDATES_MAX + 1
    assert found[-1] == 0, "who waited longest, though its tenant's turn is last"


def test_late_requests_are_named_once_and_ended_ones_never(waiting: Any) -> None:
    deadlines = Deadlines()
    requests = [waiting(n, deadline=float(seconds)) for n, seconds in enumerate([5, 3, 9, 3])]
    for live in [*requests, waiting(9, deadline=math.inf)]:
        deadlines.add(live)
    assert len(deadlines) == 4
    requests[3].phase = Phase.ENDED
    assert numbers(deadlines.late(2.9)) == []
    assert numbers(deadlines.late(5.0)) == [1, 0]
    assert numbers(deadlines.late(5.0)) == []
    assert numbers(deadlines.late(100.0)) == [2]


def test_requests_that_ended_are_not_kept_until_their_deadlines(waiting: Any) -> None:
    deadlines = Deadlines()
    for number in range(10_000):
        live = waiting(number, deadline=1e9 + number)
        deadlines.add(live)
        live.phase = Phase.ENDED
    assert len(deadlines) <= 200


def test_a_look_from_a_hint_finds_what_a_look_at_everything_finds() -> None:
    chance, now = random.Random(7), 0.0
    pool = PagePool(40, 40)
    tree = PrefixTree(pool, lambda: now)
    chains = [[BlockHash(f"{n}{i}".encode()) for i in range(12)] for n in range(4)]
    hints = [0] * 4
    for _ in range(2000):
        which, act = chance.randrange(4), chance.random()
        if act < 0.4 and pool.free_count >= 12:
            length, table = chance.randint(1, 12), BlockTable(pool)
            for page in tree.hold(chains[which][:length]):
                table.append(page)
            first = len(table)
            while len(table) < length:
                table.append(pool.take())
            until = chance.choice([math.inf, now + chance.random() * 5])
            tree.seal(chains[which], table, 0, first, until=until)
            tree.seal(chains[which], table, first, length, until=until)
            table.clear()
        elif act < 0.8:
            tree.evict()
        else:
            now += 1.0
        limit = chance.randint(0, 12)
        hints[which] = tree.count(chains[which], limit, hints[which])
        assert hints[which] == len(tree.match(chains[which][:limit]))
