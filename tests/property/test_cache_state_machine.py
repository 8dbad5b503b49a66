"""Random lives of the cache's core against a dict model, on a real arena and a real SSD tier.

The model knows which payload belongs to which hash, nothing else: what is cached may leave at any
time, but what is handed out must be the bytes that were stored, and every owner's sums must add up
after every step.
"""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    invariant,
    rule,
    run_state_machine_as_test,
)

from cache_service.quotas import NO_QUOTAS, Quotas
from storage.tier import PAGE_BYTES
from tests.property.cache_operators import OperatorLife
from tests.property.cache_world import (
    OWNERS,
    SEGMENT_BYTES,
    SEGMENTS,
    SOFT,
    TIGHT,
)


class CacheLife(OperatorLife):
    """Time, events, starts and damage; and what always holds."""

    @rule(seconds=st.sampled_from([1, 6, 11]))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

        async def ticked() -> None:
            self.cache.tick()
            for session_id in self.sessions:
                self.cache.renew(session_id, [])

        self.run(ticked())
        deadlines = [each[-1] for each in self.leases] + [at for _, at in self.lost]
        assert self.cache.stats().lease_count <= sum(at >= self.now for at in deadlines)

    @rule(turns=st.integers(1, 30))
    def the_writer_gets_on(self, turns: int) -> None:
        async def waited() -> None:
            for _ in range(turns):
                await asyncio.sleep(0.0005)
                self.cache.check_integrity()

        self.run(waited())

    @rule(count=st.integers(1, 3))
    def the_slow_watcher_reads(self, count: int) -> None:
        for _ in range(count):
            if self.slow.behind():
                self.run(self.slow.read())
        if not self.slow.behind():
            self.check_index(self.slow.places)

    @rule(resume=st.booleans())
    def the_slow_watcher_connects_anew(self, resume: bool) -> None:
        self.run(self.slow.views.aclose())
        if not resume:
            self.slow.places.lost()
        self.slow.open()

    @rule()
    def restart(self) -> None:
        """A clean end: everything on the SSD is there again, nothing else."""
        self.run(self.cache.drain())
        written = self.ssd_block_count()
        self.only_what_the_ssd_has_must_be_there()
        self.all_is_written_out()
        self.arena.close()
        self.start()
        self.what_has_an_end_may_leave()
        assert self.flipped or self.ssd_block_count() == written

    @rule(quotas=st.sampled_from([NO_QUOTAS, TIGHT, SOFT]))
    def restart_with_other_quotas(self, quotas: Quotas) -> None:
        """What is above a lower one is not there again, pinned or not; no more than it goes."""
        self.run(self.cache.drain())
        written = self.ssd_block_count()
        self.only_what_the_ssd_has_must_be_there()
        self.arena.close()
        self.policies = replace(self.policies, quotas=quotas)
        self.start()
        assert self.flipped or quotas is TIGHT or self.ssd_block_count() == written
        if quotas is TIGHT:
            self.only_what_the_ssd_has_must_be_there()

    @rule()
    def crash(self) -> None:
        """The disk is taken away under the cache; what was durable is there again."""
        self.run(self.ssd.close())
        self.run(self.cache.drain())
        written = self.ssd_block_count()
        self.only_what_the_ssd_has_must_be_there()
        self.arena.close()
        self.start()
        self.what_has_an_end_may_leave()
        assert self.flipped or self.ssd_block_count() >= written

    @rule(number=st.integers(0, SEGMENTS - 1), offset=st.integers(PAGE_BYTES, SEGMENT_BYTES - 1))
    def a_bit_flips_on_the_disk(self, number: int, offset: int) -> None:
        """From here on blocks may be missing that were written; none may be wrong."""
        self.flipped = True
        files = sorted((Path(self.folder.name) / "ssd" / "segments").iterdir())
        with files[number].open("r+b") as segment:
            segment.seek(offset)
            byte = segment.read(1)
            segment.seek(offset)
            segment.write(bytes([byte[0] ^ 4]))

    # -- what always holds -------------------------------------------------------------------------

    @invariant()
    def sums_add_up(self) -> None:
        self.cache.check_integrity()
        self.meter.check_integrity()
        stats = self.cache.stats()
        for tier in stats.tiers:
            assert 0 <= tier.used_bytes <= tier.capacity_bytes

    @invariant()
    def every_block_is_its_owners(self) -> None:
        index = self.cache._parts.index
        for row in index.tree:
            assert index.owners.of(row) == OWNERS[index.tree.block_hash(row)]

    @invariant()
    def events_are_enough_to_know_what_is_cached(self) -> None:
        while self.watcher.behind():
            self.run(self.watcher.read())
        self.check_index(self.watcher.places)


class LeavingLife(CacheLife):
    """The same for a cache that writes a block when it leaves host memory."""

    write_when = "leaving"

    def all_is_written_out(self) -> None:
        policies = self.policies
        bounded = policies.ssd_write_bytes_per_day or policies.quotas is TIGHT
        if policies.ssd_admission == "all" and not bounded:
            counters = self.cache.stats().counters
            recycled = counters.get("segments_recycled", 0)
            one_off_count = len(self.cache._parts.index.one_offs)
            left_count = self.cache.stats().host_only_count - one_off_count
            assert recycled or self.flipped or left_count == 0


@pytest.mark.timeout(120)
@pytest.mark.parametrize("life", [CacheLife, LeavingLife])
def test_any_life_of_the_cache_keeps_bytes_sums_and_chains_whole(life: type[CacheLife]) -> None:
    run_state_machine_as_test(
        life,
        settings=settings(
            max_examples=25,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[__import__("hypothesis").Phase.generate],
        ),
    )
