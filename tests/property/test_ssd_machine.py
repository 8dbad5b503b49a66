"""Any order of append, read, forget, relog, recycle, reopen and power cut, against a plain dict.

Each opening stores under another codec. A power cut stops the disk after a number of writes and
syncs, drops any part of what was not synced, and opens what is left. Held to after every step: what
was acknowledged is there and reads back right, what was forgotten is not, and nothing else ever
appears. Where prefix units end is kept as well: what was said when a block was written with its
record, what was said later with the index alone.
"""

import asyncio
import contextlib
import random
import shutil
import tempfile
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvtier.keys import BlockHash
from storage.errors import CorruptBlockError, SegmentsFullError, TierIOError
from storage.ssd.key_ring import NO_ENCRYPTION, Encryption
from storage.ssd.tier import SsdTier
from storage.tier import NO_PARENT, SsdLocation
from tests.ssd.blocks import (
    CAPACITY_BYTES,
    SEGMENT_BYTES,
    Block,
    block,
    read,
    soft_block,
)
from tests.ssd.faulty_env import FaultyEnv

SIZES = [1, 4096, 5000, 12_288, 30_000]
OWNERS = ["", "acme", "acme/search", "bert"]
CODECS = ["none", "planes_lz4", "zstd"]
"""Each opening has the next one, so that a store holds blocks under all of them."""


class SsdMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.root = Path(tempfile.mkdtemp(prefix="ssd-machine-"))
        self.lives = 0
        self.openings = 0
        self.made = 0
        self.model: dict[BlockHash, tuple[Block, SsdLocation]] = {}
        self.ends: set[BlockHash] = set()
        """With which of the model's blocks a unit ends."""
        self.recorded: set[BlockHash] = set()
        """Of which of these the record says so."""
        self.known: dict[BlockHash, Block] = {}
        """Every block ever made: what may appear after a crash."""
        self.shredded: set[BlockHash] = set()
        """What may not, whatever is lost."""

    def run(self, awaitable: Awaitable[Any]) -> Any:
        return self.loop.run_until_complete(awaitable)

    @initialize()
    def start(self) -> None:
        self.directory = self.root / "life-0"
        self.segment_count = CAPACITY_BYTES // SEGMENT_BYTES
        self.open()

    def open(self) -> None:
        # Buffered: pre-writing would make the order of writes, and so each power cut, a matter of
        # timing, and a failure could not be repeated. test_ssd_kill.py is the one for direct I/O.
        self.env = FaultyEnv(refuse_direct=True)
        self.tier = SsdTier.open(
            self.directory,
            capacity_bytes=self.segment_count * SEGMENT_BYTES,
            segment_bytes=SEGMENT_BYTES,
            codec=CODECS[self.openings % len(CODECS)],
            encryption=self.encryption(),
            env=self.env,
        )
        self.openings += 1

    def encryption(self) -> Encryption:
        """Of the next opening."""
        return NO_ENCRYPTION

    async def store(self, batch: list[Block], ends: set[BlockHash]) -> list[SsdLocation]:
        return await self.tier.append([(b.record, b.view()) for b in batch], unit_ends=ends)

    # --- ordinary life ------------------------------------------------------------------------

    def new_blocks(self, data: st.DataObject) -> list[Block]:
        parents = [NO_PARENT, *sorted(self.model)]
        batch: list[Block] = []
        for _ in range(data.draw(st.integers(1, 4), "batch size")):
            parent = data.draw(st.sampled_from(parents), "parent")
            size = data.draw(st.sampled_from(SIZES), "payload bytes")
            make = data.draw(st.sampled_from([block, soft_block]), "kind")
            batch.append(make(self.made, parent, size))
            self.made += 1
            self.known[batch[-1].hash] = batch[-1]
            parents.append(batch[-1].hash)
        return batch

    @rule(data=st.data())
    def append(self, data: st.DataObject) -> None:
        with contextlib.suppress(SegmentsFullError):
            self.append_some(self.new_blocks(data), data)

    def append_some(self, batch: list[Block], data: st.DataObject) -> None:
        ends = {b.hash for b in batch if data.draw(st.booleans(), "ends a unit")}
        self.offered = ends
        locations = self.run(self.store(batch, ends))
        self.model.update({b.hash: (b, x) for b, x in zip(batch, locations, strict=True)})
        self.ends |= ends
        self.recorded |= ends

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def units_end_later(self, data: st.DataObject) -> None:
        marked = data.draw(st.lists(st.sampled_from(sorted(self.model)), unique=True), "marked")
        self.run(self.tier.save_unit_ends(marked))
        self.ends |= set(marked)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        hashes = self.subtree({data.draw(st.sampled_from(sorted(self.model)), "forgotten")})
        self.run(self.tier.forget(sorted(hashes)))
        for block_hash in hashes:
            del self.model[block_hash]

    @precondition(lambda self: any(s.state == "sealed" for s in self.tier.segments()))
    @rule(data=st.data())
    def recycle(self, data: st.DataObject) -> None:
        """Re-logs some blocks of the segment, forgets the others with their descendants."""
        sealed = [s.segment_id for s in self.tier.segments() if s.state == "sealed"]
        segment_id = data.draw(st.sampled_from(sealed), "segment")
        inside = [h for h, (_, x) in self.model.items() if x.segment_id == segment_id]
        keep = [h for h in inside if data.draw(st.booleans(), "keep")]
        gone = self.subtree(set(inside) - set(keep))
        keep = [h for h in keep if h not in gone]
        try:
            self.relog(keep)
        except SegmentsFullError:
            gone |= self.subtree(set(keep))
        self.run(self.tier.forget(sorted(gone)))
        for block_hash in gone:
            del self.model[block_hash]
        self.run(self.tier.recycle(segment_id))

    def relog(self, hashes: list[BlockHash]) -> None:
        pairs = [self.model[h] for h in hashes]
        moved = self.run(self.tier.relog([(b.record, x) for b, x in pairs], self.ends))
        self.recorded |= self.ends & set(hashes)
        for (b, _), location in zip(pairs, moved, strict=True):
            assert location is not None
            self.model[b.hash] = (b, location)

    @rule()
    def reopen(self) -> None:
        self.run(self.tier.close())
        self.open()
        assert self.tier.report.repaired_count == 0
        assert self.tier.report.dropped_count == 0
        self.check_recovered(must=set(self.model), may=set())

    @rule()
    def lose_the_index(self) -> None:
        """Blocks of recycled segments stay gone; others may come back, each as it was.

        What was acknowledged is whole. Of what never was, headers may have come back before half a
        payload: a reader finds out, and its owner forgets them.
        """
        acknowledged = set(self.model)
        self.run(self.tier.close())
        shutil.rmtree(self.directory / "index")
        self.open()
        may = set(self.known) - self.shredded
        self.check_recovered(must=acknowledged, may=may, index=False)
        torn = set()
        for block_hash, (b, location) in self.model.items():
            try:
                self.run(read(self.tier, b.record, location))
            except CorruptBlockError:
                torn.add(block_hash)
        assert not torn & acknowledged, "an acknowledged block came back torn"
        torn = self.subtree(torn)
        assert not torn & acknowledged, "an acknowledged block hangs on one that never was"
        self.run(self.tier.forget(sorted(torn)))
        for block_hash in torn:
            del self.model[block_hash]

    @rule(count=st.integers(4, 8))
    def change_capacity(self, count: int) -> None:
        """Growing keeps everything; shrinking loses the highest and what continued them."""
        self.run(self.tier.close())
        self.segment_count = count
        self.open()
        gone = self.subtree({h for h, (_, x) in self.model.items() if x.segment_id >= count})
        self.check_recovered(must=set(self.model) - gone, may=set())

    # --- power cuts ---------------------------------------------------------------------------

    @rule(data=st.data(), seed=st.integers(0, 2**32))
    def cut_power_during_append(self, data: st.DataObject, seed: int) -> None:
        batch = self.new_blocks(data)
        self.env.cut_power_after(data.draw(st.integers(0, 6), "writes and syncs"))
        with contextlib.suppress(TierIOError, SegmentsFullError):
            self.append_some(batch, data)
        self.restart_after_power_cut(seed)
        self.check_recovered(must=set(self.model), may={b.hash for b in batch})

    @precondition(lambda self: self.model)
    @rule(data=st.data(), seed=st.integers(0, 2**32))
    def cut_power_during_relog(self, data: st.DataObject, seed: int) -> None:
        keep = data.draw(st.lists(st.sampled_from(sorted(self.model)), unique=True), "relogged")
        self.env.cut_power_after(data.draw(st.integers(0, 6), "writes and syncs"))
        with contextlib.suppress(TierIOError, SegmentsFullError):
            self.relog(keep)
        self.restart_after_power_cut(seed)
        self.check_recovered(must=set(self.model), may=set())

    @precondition(lambda self: any(s.state == "sealed" for s in self.tier.segments()))
    @rule(data=st.data(), seed=st.integers(0, 2**32))
    def cut_power_during_recycle(self, data: st.DataObject, seed: int) -> None:
        sealed = [s.segment_id for s in self.tier.segments() if s.state == "sealed"]
        segment_id = data.draw(st.sampled_from(sealed), "segment")
        gone = self.subtree({h for h, (_, x) in self.model.items() if x.segment_id == segment_id})
        self.run(self.tier.forget(sorted(gone)))
        for block_hash in gone:
            del self.model[block_hash]
        self.env.cut_power_after(data.draw(st.integers(0, 2), "writes and syncs"))
        with contextlib.suppress(TierIOError):
            self.run(self.tier.recycle(segment_id))
        self.restart_after_power_cut(seed)
        self.check_recovered(must=set(self.model), may=set())

    def restart_after_power_cut(self, seed: int) -> None:
        rng = random.Random(seed)
        self.lives += 1
        copy = self.root / f"life-{self.lives}"
        copied(self.directory, copy)
        self.env.apply_power_cut(self.directory, copy, lambda: rng.random() < 0.5)
        self.run(self.tier.close())
        shutil.rmtree(self.directory)
        self.directory = copy
        self.open()

    # --- what always holds ----------------------------------------------------------------------

    def check_recovered(
        self, must: set[BlockHash], may: set[BlockHash], *, index: bool = True
    ) -> None:
        """`index`: what it said was not lost."""
        found = {}
        recovered = self.tier.recovered()
        marks = dict(zip(recovered.hashes.tolist(), recovered.unit_end.tolist(), strict=True))
        said = {BlockHash(name) for name, mark in marks.items() if mark}
        for record, location in recovered:
            parent = record.parent_hash
            assert parent == NO_PARENT or parent in found, "a child came before its parent"
            found[record.block_hash] = (self.known[record.block_hash], location)
        assert must <= set(found), "acknowledged blocks are gone"
        assert set(found) <= must | may, "blocks appeared from nowhere"
        assert self.tier.report.kept_count == len(found)
        # An older record than the last may be what is found without the index.
        assert self.recorded & must <= said or not index
        assert not index or self.ends & must == said & must
        assert said & must <= self.ends, "units end where none did"
        self.model = found
        self.ends = said
        self.recorded &= said

    def subtree(self, hashes: set[BlockHash]) -> set[BlockHash]:
        grown = set(hashes)
        while True:
            children = {h for h, (b, _) in self.model.items() if b.record.parent_hash in grown}
            if children <= grown:
                return grown
            grown |= children

    @invariant()
    def every_block_reads_back(self) -> None:
        for b, location in self.model.values():
            assert self.run(read(self.tier, b.record, location)) == b.payload

    @invariant()
    def capacity_is_exact(self) -> None:
        if hasattr(self, "tier"):
            self.tier.check_integrity()
            sizes = [f.stat().st_size for f in (self.directory / "segments").iterdir()]
            assert sum(sizes) == self.segment_count * SEGMENT_BYTES

    def teardown(self) -> None:
        if hasattr(self, "tier"):
            self.run(self.tier.close())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        shutil.rmtree(self.root)


class EncryptedSsdMachine(SsdMachine):
    """The same, encrypted from the second opening on, under another master key each time; and
    organisations whose keys are destroyed."""

    def __init__(self) -> None:
        super().__init__()
        self.encrypted: dict[BlockHash, str] = {}
        """Organisations of blocks that were never in clear."""

    def encryption(self) -> Encryption:
        number = self.openings
        masters = tuple(bytes([i]) * 32 for i in range(number, max(0, number - 2), -1))
        return Encryption(masters)

    async def store(self, batch: list[Block], ends: set[BlockHash]) -> list[SsdLocation]:
        owners = [OWNERS[b.hash[0] % len(OWNERS)] for b in batch]
        blocks = [(b.record, b.view()) for b in batch]
        locations = await self.tier.append(blocks, (), owners, ends)
        if self.tier.encryption.enabled:
            self.encrypted |= {b.hash: o[:4] for b, o in zip(batch, owners, strict=True)}
        return locations

    def forget_those_of(self, organisation: str) -> None:
        mine = {h for h, o in self.encrypted.items() if o == organisation}
        gone = self.subtree({h for h in self.model if h in mine})
        self.run(self.tier.forget(sorted(gone)))
        for block_hash in gone:
            del self.model[block_hash]

    def destroy_those_of(self, organisation: str) -> None:
        if self.run(self.tier.destroy_keys(organisation)).durable:
            self.shredded |= {h for h, o in self.encrypted.items() if o == organisation}

    @rule(organisation=st.sampled_from(["", "acme", "bert"]))
    def shred(self, organisation: str) -> None:
        self.leave_nothing_else(organisation)
        self.forget_those_of(organisation)
        self.destroy_those_of(organisation)

    @rule(
        organisation=st.sampled_from(["", "acme", "bert"]),
        seed=st.integers(0, 2**32),
        changes=st.integers(0, 3),
    )
    def cut_power_during_shred(self, organisation: str, seed: int, changes: int) -> None:
        self.leave_nothing_else(organisation)
        self.forget_those_of(organisation)
        self.env.cut_power_after(changes)
        self.destroy_those_of(organisation)
        self.restart_after_power_cut(seed)
        self.check_recovered(must=set(self.model), may=set())

    def leave_nothing_else(self, organisation: str) -> None:
        """A block that was written in clear and again encrypted is readable no more either."""
        others = {
            h
            for h in self.model
            if h not in self.encrypted and OWNERS[h[0] % len(OWNERS)][:4] == organisation
        }
        gone = self.subtree(others)
        self.run(self.tier.forget(sorted(gone)))
        for block_hash in gone:
            del self.model[block_hash]


def copied(source: Path, target: Path) -> None:
    """RocksDB tidies up on its own threads: a copy that misses a file it just removed is redone."""
    for _ in range(20):
        with contextlib.suppress(shutil.Error):
            shutil.copytree(source, target)
            return
        shutil.rmtree(target)
    raise AssertionError("the directory never stood still")


TestSsdMachine = SsdMachine.TestCase
TestEncryptedSsdMachine = EncryptedSsdMachine.TestCase
TestSsdMachine.settings = TestEncryptedSsdMachine.settings = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
