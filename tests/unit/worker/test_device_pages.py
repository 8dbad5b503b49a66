"""Copies under way on a device: no slab is read after its lease went back, no page is given up
before its event, and no wrong byte is called right.

The device here copies when the test says so, one copy at a time, in any order.
"""

import contextlib
import gc
import itertools
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import grpc
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.blocks import MissReason, Tier
from kvtier.keys import BlockHash, payload_checksum
from kvtier.v1 import cache_pb2 as pb
from tests.page_kinds import in_turn
from worker.cache_restore import Restore, Restored, Wanted
from worker.cache_session import CacheSession
from worker.device_copies import WaitingCopies, copies_for, copy_lanes, registered_for
from worker.device_pages import DeviceLanding, DeviceSource
from worker.landing import PageBytes, RevokedError
from worker.transfer import CopyLanes, TimeUpError

BLOCK_BYTES = 64
COUNT = 6
CHAIN = [BlockHash(bytes([i + 1]) * 32) for i in range(COUNT)]
PAYLOADS = [np.full(BLOCK_BYTES, i + 1, dtype=np.uint8) for i in range(COUNT)]
CHECKSUMS = [payload_checksum(h, p.tobytes()) for h, p in zip(CHAIN, PAYLOADS, strict=True)]


@dataclass(eq=False)
class Copy:
    device: "SteppedCopies"
    target: PageBytes
    source: PageBytes
    after: Any
    over: bool = False

    def done(self) -> bool:
        return self.over

    def wait(self) -> None:
        """Others are made first, as many as the test says."""
        for _ in range(self.device.others_first):
            self.device.make_one(but=self)
        if not self.over:
            self.device.make(self)


@dataclass(eq=False)
class Fence:
    passed: bool = True

    def done(self) -> bool:
        return self.passed

    def wait(self) -> None:
        self.passed = True


@dataclass
class SteppedCopies:
    """`DeviceCopies`, one at a time. `looks_at` sees each source when it is really read."""

    registered: bool
    others_first: int = 0
    last_first: bool = False
    page_bytes: int = BLOCK_BYTES
    rows: PageBytes = field(default_factory=lambda: np.zeros((COUNT, BLOCK_BYTES), np.uint8))
    waiting: list[Copy] = field(default_factory=list)
    fences: list[Fence] = field(default_factory=list)
    looks_at: Any = None

    def fence(self) -> Fence:
        self.fences.append(Fence())
        return self.fences[-1]

    def load(self, host: PageBytes, page: int, after: Any) -> Copy:
        return self._ask(self.rows[page], host, after)

    def store(self, page: int, host: PageBytes, after: Any) -> Copy:
        return self._ask(host, self.rows[page], after)

    def staging(self, count: int) -> Sequence[PageBytes]:
        return [np.zeros(BLOCK_BYTES, np.uint8) for _ in range(count)]

    def reads(self, slab: PageBytes) -> bool:
        return self.registered

    def make_one(self, but: Copy | None = None) -> None:
        others = [copy for copy in self.waiting if copy is not but]
        if others:
            self.make(others[-1 if self.last_first else 0])

    def make(self, copy: Copy) -> None:
        assert copy.after.passed, "a copy before its fence"
        if self.looks_at is not None:
            self.looks_at(copy)
        copy.target[:] = copy.source
        copy.over = True
        self.waiting.remove(copy)

    def _ask(self, target: PageBytes, source: PageBytes, after: Any) -> Copy:
        self.waiting.append(Copy(self, target, source, after))
        return self.waiting[-1]


def take(landing: DeviceLanding, index: int, slab: PageBytes) -> bool:
    return landing.take(index, [CHAIN[index]], [slab], [CHECKSUMS[index]]) == 1


@pytest.mark.parametrize("registered", [False, True])
def test_a_scribble_on_the_slab_while_it_is_copied_is_no_landing(registered: bool) -> None:
    """Staged bytes are ours by then: nothing can happen to them."""
    copies = SteppedCopies(registered)
    landing = DeviceLanding(copies, range(COUNT))
    slabs = [payload.copy() for payload in PAYLOADS]
    assert all(take(landing, index, slab) for index, slab in enumerate(slabs))
    slabs[2][5] ^= 1
    assert landing.settle(0, COUNT, in_turn) == (2 if registered else COUNT)
    good = slice(0, 2 if registered else COUNT)
    assert np.array_equal(copies.rows[good], np.stack(PAYLOADS)[good])


@pytest.mark.parametrize("registered", [False, True])
def test_a_wrong_slab_is_not_copied_at_all(registered: bool) -> None:
    copies = SteppedCopies(registered)
    landing = DeviceLanding(copies, range(COUNT))
    assert not take(landing, 1, PAYLOADS[2].copy())
    assert copies.waiting == []
    assert landing.settle(1, 1, in_turn) == 0


def test_what_was_never_taken_is_not_called_right() -> None:
    landing = DeviceLanding(SteppedCopies(True), range(COUNT))
    assert take(landing, 0, PAYLOADS[0])
    assert landing.settle(0, 3, in_turn) == 1


def test_no_copy_begins_before_what_the_engine_computed_until_then() -> None:
    copies = SteppedCopies(True)
    landing = DeviceLanding(copies, range(COUNT))
    (fence,) = copies.fences
    take(landing, 0, PAYLOADS[0])
    assert copies.waiting[0].after is fence


def test_after_a_revoke_no_copy_begins_and_it_is_quiet_when_those_before_are_over() -> None:
    copies = SteppedCopies(False)
    landing = DeviceLanding(copies, range(COUNT))
    take(landing, 0, PAYLOADS[0])
    take(landing, 1, PAYLOADS[1])
    assert not landing.quiet
    assert landing.revoke()
    for begin in (
        lambda: take(landing, 2, PAYLOADS[2]),
        lambda: landing.room(2, 1),
        lambda: landing.push(2, [PAYLOADS[2]]),
    ):
        with pytest.raises(RevokedError):
            begin()
    quiet = [landing.quiet]
    while copies.waiting:
        copies.make_one()
        quiet.append(landing.quiet)
    assert quiet == [False, False, True]


def test_a_source_lends_what_is_in_its_pages_and_nothing_after_a_revoke() -> None:
    copies = SteppedCopies(False)
    copies.rows[:] = np.stack(PAYLOADS)
    source = DeviceSource(copies, [3, 1, 5])
    with source.lend([0, 2]) as lent:
        assert [page.tobytes() for page in lent] == [PAYLOADS[3].tobytes(), PAYLOADS[5].tobytes()]
    source.revoke()
    with pytest.raises(RevokedError), source.lend([0]):
        pass
    assert source.quiet


def test_a_device_without_streams_makes_its_copies_at_once() -> None:
    data = torch.zeros(COUNT, BLOCK_BYTES // 4)
    landing = DeviceLanding(WaitingCopies(data), range(COUNT))
    assert all(take(landing, index, payload) for index, payload in enumerate(PAYLOADS))
    assert np.array_equal(data.view(torch.uint8).numpy(), np.stack(PAYLOADS))
    assert landing.settle(0, COUNT, in_turn) == COUNT
    with DeviceSource(WaitingCopies(data), [4]).lend([0]) as (page,):
        assert np.array_equal(page, PAYLOADS[4])


def test_a_processor_needs_none_of_it() -> None:
    cpu = torch.device("cpu")
    assert (copies_for(torch.zeros(1, 4)), registered_for(cpu), copy_lanes(cpu)) == (None, None, 2)
    assert isinstance(copies_for(torch.zeros(1, 4, device="meta")), WaitingCopies)
    assert 2 <= copy_lanes(torch.device("cuda")) <= 8


class Wire:
    """The generated stub's place: one acquire, and slabs that are somebody else's as soon as its
    lease goes back."""

    def __init__(self, slabs: list[PageBytes], checksums: list[int], ranges: list[int]) -> None:
        self.slabs = slabs
        self.lease_is_back = False
        self.ReleaseLease = self
        self._checksums = checksums
        self._ranges = ranges
        self._events = self._said()

    def slab(self, offset: int) -> PageBytes:
        return self.slabs[offset]

    def AcquireResident(self, request: Any, timeout: float) -> pb.AcquireResidentResponse:
        return pb.AcquireResidentResponse()

    def AcquirePrefix(self, request: Any, timeout: float) -> "Wire":
        return self

    def __iter__(self) -> Iterator[pb.AcquirePrefixResponse]:
        return self._events

    def _said(self) -> Iterator[pb.AcquirePrefixResponse]:
        match = pb.PrefixMatch(
            lease_id="lease", matched_count=COUNT, tiers=bytes([Tier.HOST] * COUNT)
        )
        yield pb.AcquirePrefixResponse(match=match)
        first = 0
        for count in self._ranges:
            end = min(COUNT, first + count)
            ready = pb.ReadyRange(
                first_index=first,
                checksums=self._checksums[first:end],
                slab_offsets=list(range(first, end)),
            )
            yield pb.AcquirePrefixResponse(ready=ready)
            first = end
        reason = cast(Any, int(MissReason.NONE))
        yield pb.AcquirePrefixResponse(end=pb.AcquireEnd(ready_count=first, miss_reason=reason))

    def cancel(self) -> None:
        """The stream ends."""

    def put(self, lease_id: str) -> None:
        self.give_back()

    def future(self, request: Any, timeout: float) -> Any:
        self.give_back()
        return self

    def add_done_callback(self, callback: Any) -> None:
        callback(self)

    def give_back(self) -> None:
        self.lease_is_back = True
        for slab in self.slabs:
            slab[:] = 0xEE


@settings(max_examples=300, deadline=None)
@given(
    registered=st.booleans(),
    others_first=st.integers(0, COUNT),
    last_first=st.booleans(),
    ranges=st.lists(st.integers(1, COUNT), min_size=1, max_size=4).map(
        lambda sizes: [b - a for a, b in itertools.pairwise([0, *_cut(sizes)])]
    ),
    corrupt=st.none() | st.integers(0, COUNT - 1),
    scribbled=st.none() | st.tuples(st.integers(0, COUNT - 1), st.integers(0, COUNT - 1)),
    revoked_at=st.none() | st.integers(1, COUNT),
    time_up_at=st.none() | st.integers(1, 3 * COUNT),
)
def test_whatever_ends_a_restore_its_slabs_are_read_no_more_and_what_it_counts_is_right(
    registered: bool,
    others_first: int,
    last_first: bool,
    ranges: list[int],
    corrupt: int | None,
    scribbled: tuple[int, int] | None,
    revoked_at: int | None,
    time_up_at: int | None,
) -> None:
    slabs = [payload.copy() for payload in PAYLOADS]
    checksums = list(CHECKSUMS)
    if corrupt is not None:
        checksums[corrupt] += 1
    wire = Wire(slabs, checksums, ranges)
    copies = SteppedCopies(registered, others_first, last_first)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("worker.device_pages.IN_FLIGHT_BYTES", 2 * BLOCK_BYTES)
        landing = DeviceLanding(copies, range(COUNT))
    made = itertools.count()

    def looks_at(copy: Copy) -> None:
        shared = any(copy.source is slab for slab in slabs)
        assert shared == registered
        assert not (shared and wire.lease_is_back), "a slab is read after its lease went back"
        assert not landing.quiet, "pages are given up while a copy is under way"
        at = next(made)
        if scribbled is not None and at == scribbled[0]:
            slabs[scribbled[1]][0] ^= 1
        if revoked_at == at:
            landing.revoke()

    copies.looks_at = looks_at
    looks = itertools.count()

    def clock() -> float:
        return 100.0 if time_up_at is not None and next(looks) >= time_up_at else 0.0

    restored = Restored()
    with grpc.insecure_channel("unix:/nowhere") as channel:
        opened = pb.OpenSessionResponse(session_id="session", max_blocks_per_call=64)
        session = CacheSession(cast(Any, wire), channel, opened, cast(Any, wire), None)
        session.lease_returns.close()
        session.lease_returns = cast(Any, wire)
        wire.take = list  # type: ignore[attr-defined]
        lanes = CopyLanes(1)
        try:
            with contextlib.suppress(RevokedError, TimeUpError):
                Restore(session, lanes, clock, Wanted(CHAIN, landing, 10.0)).run("r", restored)
        finally:
            lanes.close()
    count = len(restored.tiers)
    assert len(landing.tiers) == count
    assert copies.waiting == []
    assert wire.lease_is_back or not count
    # Whatever became of the slabs meanwhile.
    assert np.array_equal(copies.rows[:count], np.stack(PAYLOADS)[:count]) or count == 0
    if corrupt is None and scribbled is None and revoked_at is None and time_up_at is None:
        assert count == min(COUNT, sum(ranges))
    landing.revoke()
    assert landing.quiet


def _cut(sizes: list[int]) -> list[int]:
    """Ends of ranges, at most all of the chain."""
    ends = itertools.accumulate(sizes)
    return sorted({min(COUNT, end) for end in ends})


@dataclass
class ForgetfulCopies(SteppedCopies):
    """As a device: of the host memory that it copies to it knows an address, and keeps nothing."""

    hosts: "list[weakref.ref[PageBytes]]" = field(default_factory=list)
    fails_at: int = COUNT

    def store(self, page: int, host: PageBytes, after: Any) -> Any:
        if len(self.hosts) == self.fails_at:
            raise RuntimeError("CUDA out of memory")
        self.hosts.append(weakref.ref(host))
        return Fence(passed=False)

    def load(self, host: PageBytes, page: int, after: Any) -> Any:
        self.hosts.append(weakref.ref(host))
        return Fence(passed=False)


def test_memory_that_a_copy_is_under_way_to_is_nobody_elses() -> None:
    """Also when a later copy of the same store could not begin: staging is not given back."""
    copies = ForgetfulCopies(registered=False, fails_at=2)
    source = DeviceSource(copies, range(COUNT))
    with pytest.raises(RuntimeError, match="out of memory"), source.lend([0, 1, 2]):
        raise AssertionError("a page was lent that was not copied")
    gc.collect()
    under_way = [host() for host in copies.hosts]
    assert len(under_way) == 2
    assert all(host is not None for host in under_way)
    assert not source._spare
    source.close()


def test_memory_that_a_copy_is_under_way_from_is_nobody_elses() -> None:
    copies = ForgetfulCopies(registered=False)
    landing = DeviceLanding(copies, range(COUNT))
    landing.push(0, landing.room(0, 2))
    landing.revoke()
    gc.collect()
    assert [host() is not None for host in copies.hosts] == [True, True]
    landing.close()
