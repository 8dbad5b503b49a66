"""What the order of reads promises: nobody starves, flows get equal bytes, little goes first."""

from collections import defaultdict
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from storage.ssd.read_order import CREDIT_BYTES, PASSING, ReadFlow, ReadOrder

MIB = 1 << 20
sizes = st.sampled_from([MIB // 4, MIB, 4 * MIB, 16 * MIB])


class OrderMachine(RuleBasedStateMachine):
    """Runs are (flow, number); the model is the set of those that wait."""

    def __init__(self) -> None:
        super().__init__()
        self.order: ReadOrder[tuple[int, int]] = ReadOrder()
        self.flows = [ReadFlow() for _ in range(4)]
        self.waiting: dict[tuple[int, int], int] = {}
        self.moved: set[tuple[int, int]] = set()
        self.number = 0

    @rule(flow=st.integers(0, 3), size=sizes, count=st.integers(1, 5))
    def ask(self, flow: int, size: int, count: int) -> None:
        for _ in range(count):
            run = (flow, self.number)
            self.number += 1
            self.order.put(run, self.flows[flow], size)
            self.waiting[run] = size

    @rule(flow=st.integers(0, 3), of=st.integers(0, 3), every=st.integers(1, 3))
    def share(self, flow: int, of: int, every: int) -> None:
        wanted = {run for run in self.waiting if run[0] == of and run[1] % every == 0}
        self.order.sooner(lambda run: run in wanted, self.flows[flow])
        self.moved |= wanted

    @precondition(lambda self: self.waiting)
    @rule()
    def take(self) -> None:
        run = self.order.take()
        assert self.waiting.pop(run)
        before = [r for r in self.waiting if r[0] == run[0] and r[1] < run[1]]
        assert run in self.moved or not [r for r in before if r not in self.moved]

    @invariant()
    def the_count_is_right(self) -> None:
        assert len(self.order) == len(self.waiting)
        assert sum(flow.waiting for flow in self.flows) == len(self.waiting)
        assert len(self.order._heap) <= 2 * len(self.waiting) + 64 + len(self.moved)

    def teardown(self) -> None:
        while self.waiting:
            self.take()


TestOrder = OrderMachine.TestCase
TestOrder.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def served(order: "ReadOrder[Any]", count: int) -> list[Any]:
    return [order.take() for _ in range(count)]


@given(st.integers(1, 8), sizes)
def test_who_asks_for_one_block_goes_before_all_that_wait_for_many(flows: int, size: int) -> None:
    order: ReadOrder[str] = ReadOrder()
    for name in range(flows):
        flow = ReadFlow()
        for _ in range(4):
            order.put(f"long {name}", flow, size)
    # Into the middle of it, when the others have had what they needed first.
    served(order, flows + 1)
    order.put("one", ReadFlow(), MIB // 4)
    assert order.take() == "one"


@given(st.lists(sizes, min_size=2, max_size=6))
def test_flows_that_read_all_the_time_get_equal_bytes(run_sizes: list[int]) -> None:
    order: ReadOrder[int] = ReadOrder()
    flows = [ReadFlow() for _ in run_sizes]
    for number, size in enumerate(run_sizes):
        for _ in range(2):
            order.put(number, flows[number], size)
    got: dict[int, int] = defaultdict(int)
    while min(got[n] for n in range(len(flows))) < 256 * MIB:
        number = order.take()
        got[number] += run_sizes[number]
        order.put(number, flows[number], run_sizes[number])
    assert max(got.values()) - min(got.values()) <= 3 * 16 * MIB + CREDIT_BYTES


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(1, 16), sizes)
def test_newcomers_without_end_pass_only_so_many_bytes_by_whoever_waits(
    waiting: int, behind_mib: int, size: int
) -> None:
    order: ReadOrder[str] = ReadOrder()
    flow = ReadFlow()
    for _ in range(waiting):
        order.put("patient", flow, behind_mib * MIB)
    bound = (waiting * behind_mib * MIB + CREDIT_BYTES) * PASSING * (waiting + 2) + size
    newcomers = 0
    while waiting:
        if len(order) == waiting:
            order.put("new", ReadFlow(), size)
        if order.take() == "patient":
            waiting -= 1
        else:
            newcomers += 1
        # Each newcomer moves the time on by its share, so the last one's turn comes.
        assert newcomers * size <= bound


def test_a_shared_run_goes_at_the_sooner_turn_and_once() -> None:
    order: ReadOrder[int] = ReadOrder()
    long, short = ReadFlow(), ReadFlow()
    for number in range(8):
        order.put(number, long, 16 * MIB)
    assert order.take() == 0
    order.sooner(lambda run: run == 6, short)
    assert served(order, 7) == [6, 1, 2, 3, 4, 5, 7]
    assert len(order) == 0


def test_runs_of_a_flow_keep_their_order() -> None:
    order: ReadOrder[int] = ReadOrder()
    flow = ReadFlow()
    for number in range(20):
        order.put(number, flow, MIB)
    assert all(a < b for a, b in pairwise(served(order, 20)))
