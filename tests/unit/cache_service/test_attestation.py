"""What the service attests of its leases, through every end that a lease can have."""

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from cache_service.attest import witness as witness_module
from cache_service.attest.attestation import (
    Attested,
    Gap,
    GapReason,
    LeaseAttestation,
    LeaseEnd,
    LeaseGrant,
    TierBlocks,
    lose_lease,
)
from cache_service.attest.dialect import ATTESTATION_FORMAT, Begun
from cache_service.attest.metrics import AttestMetrics
from cache_service.attest.opening import Attestation
from cache_service.attest.wire import attestation_message
from cache_service.attest.witness import ALIVE_FILE, Identity, Witness
from cache_service.hints import Hints
from cache_service.owner_runs import OwnerRuns
from journal.delivery import DeliverySettings
from journal.format import BadLineError, Begin, End
from journal.journal import Journal, JournalLimits
from journal.outbox import Outbox
from journal.segment import JournalFile

GRANT = LeaseGrant(
    "a1",
    "r1",
    "worker-1",
    "s1",
    "node-1",
    "run-1",
    "acme/search",
    b"n" * 32,
    64,
    5,
    TierBlocks(3, 2),
)
ATTESTED = LeaseAttestation(GRANT, 9, LeaseEnd.RELEASED, TierBlocks(3, 1), 1)
GAP = Gap("gap/run-1/1", "node-1", "run-1", 5, 9, GapReason.UNWRITTEN, 7)

Open = Callable[..., Journal[Begun, Attested]]


class Wall:
    """Nanoseconds since 1970, moved by a test."""

    def __init__(self) -> None:
        self.now_ns = 10**18

    def __call__(self) -> int:
        return self.now_ns


@pytest.fixture
def wall() -> Wall:
    return Wall()


def opened(directory: Path, **more: Any) -> Journal[Begun, Attested]:
    return Journal(ATTESTATION_FORMAT, directory, **more)


def attested(journal: Journal[Begun, Attested]) -> list[Attested]:
    outbox = Outbox(
        ATTESTATION_FORMAT,
        journal.directory,
        journal.opening.acknowledged,
        lambda: journal.durable_sequence,
    )
    return [pending.event for pending in outbox.pending(100_000)]


class Witnessed:
    """A cache with a witness and its journal."""

    def __init__(self, cache: Any, directory: Path, wall: Wall, **more: Any) -> None:
        self.cache = cache
        self.journal = opened(directory, **more)
        self.written: list[int] = []
        self.witness = Witness(self.journal, Identity("node-1", "run-1"), self.written.append, wall)
        (directory / ALIVE_FILE).write_text("run-1")
        cache.attest(self.witness)

    async def tick(self) -> None:
        self.cache.tick()
        await self.witness._settled()
        self.cache.check_integrity()

    @property
    def leases(self) -> list[LeaseAttestation]:
        return [each for each in attested(self.journal) if isinstance(each, LeaseAttestation)]


@pytest.fixture
def watched(cache: Any, tmp_path: Path, wall: Wall) -> Any:
    made = Witnessed(cache, tmp_path, wall)
    yield made
    made.journal.close()


@pytest.mark.parametrize(
    "event",
    [
        ATTESTED,
        replace(ATTESTED, served=TierBlocks(3, 1, 2)),
        GAP,
        replace(GAP, lease_count=None),
        lose_lease(GRANT, 3),
    ],
)
def test_every_attestation_reads_back_as_it_was_written(event: Attested) -> None:
    line = ATTESTATION_FORMAT.encode(7, End(event))
    assert ATTESTATION_FORMAT.decode(line.removesuffix(b"\n")) == (7, End(event))
    message = attestation_message(event)
    assert message.attestation_id == event.attestation_id
    assert message.node == "node-1"


def test_a_grant_reads_back_and_keys_that_are_wrong_do_not_count() -> None:
    line = ATTESTATION_FORMAT.encode(7, Begin(GRANT)).removesuffix(b"\n")
    assert ATTESTATION_FORMAT.decode(line) == (7, Begin(GRANT))
    for position in range(0, len(line) * 8, 7):
        flipped = bytearray(line)
        flipped[position // 8] ^= 1 << position % 8
        with pytest.raises(BadLineError):
            ATTESTATION_FORMAT.decode(bytes(flipped))


async def test_a_lease_that_is_returned_is_attested_with_what_it_served(
    watched: Any, client: Any, chain: Any, wall: Wall
) -> None:
    await client.store(chain(1, 2, 3), Hints(owners=OwnerRuns(("acme",), (3,))))
    acquired = await client.acquire(chain(1, 2, 3, 4))
    wall.now_ns += 5
    client.release(acquired)
    await watched.tick()
    (one,) = watched.leases
    assert one.grant.lease_id == acquired.match.lease_id
    assert (one.grant.request_id, one.grant.client_name) == ("r", "test")
    assert (one.grant.owner, one.grant.block_tokens) == ("acme", 64)
    assert (one.grant.granted, one.served) == (TierBlocks(3, 0), TierBlocks(3, 0))
    assert (one.grant.start_time_ns, one.end_time_ns) == (10**18, 10**18 + 5)
    assert one.end is LeaseEnd.RELEASED
    assert watched.written == [1]


async def test_every_end_of_a_lease_is_told_apart(
    watched: Any, client: Any, connect: Any, chain: Any, clock: Any
) -> None:
    await client.store(chain(1, 2))
    other, third = connect(watched.cache), connect(watched.cache)
    by_lease = {}

    async def lease(of: Any) -> str:
        lease_id = (await of.acquire(chain(1, 2))).match.lease_id
        return str(lease_id)

    by_lease[await lease(other)] = LeaseEnd.SESSION_CLOSED
    watched.cache.close_session(other.session_id)
    by_lease[await lease(client)] = LeaseEnd.EXPIRED
    clock.advance(11)
    await watched.tick()
    by_lease[await lease(third)] = LeaseEnd.SESSION_EXPIRED
    clock.advance(61)
    await watched.tick()
    fourth = connect(watched.cache)
    asked = watched.cache.acquire(fourth.session_id, "cut", chain(1, 2), None)
    match = await anext(asked)
    by_lease[match.lease_id] = LeaseEnd.ABANDONED
    await asked.aclose()
    by_lease[await lease(fourth)] = LeaseEnd.STOPPED
    await watched.cache.drain()
    assert {each.grant.lease_id: each.end for each in watched.leases} == by_lease
    assert not (watched.journal.directory / ALIVE_FILE).exists()


async def test_what_a_client_calls_corrupt_is_counted_and_served_all_the_same(
    watched: Any, client: Any, chain: Any
) -> None:
    await client.store(chain(1, 2))
    acquired = await client.acquire(chain(1, 2))
    client.release(acquired, [chain(1, 2)[1]])
    await watched.tick()
    (one,) = watched.leases
    assert (one.served, one.corrupt_blocks) == (TierBlocks(2, 0), 1)


async def test_leases_that_were_open_when_the_service_died_are_lost_and_its_last_moments_a_gap(
    watched: Any, client: Any, chain: Any, wall: Wall, tmp_path: Path
) -> None:
    await client.store(chain(1, 2))
    kept = await client.acquire(chain(1, 2))
    await watched.tick()
    wall.now_ns += 10**9
    await watched.tick()
    unseen = await client.acquire(chain(1))
    wall.now_ns += 10**8
    watched.journal.close()  # Nothing more comes into it: as if it were killed here.

    wall.now_ns += 10**9
    found = await opened_again(tmp_path, wall)
    lost, gap = found[-2:]
    assert isinstance(lost, LeaseAttestation)
    assert (lost.grant.lease_id, lost.end, lost.served) == (
        kept.match.lease_id,
        LeaseEnd.LOST,
        None,
    )
    assert isinstance(gap, Gap)
    assert (gap.instance_id, gap.reason, gap.lease_count) == ("run-1", GapReason.KILLED, None)
    # From the last tick whose records are known to be there.
    assert (gap.start_time_ns, gap.end_time_ns) == (10**18, wall.now_ns)
    assert unseen.match.lease_id not in [
        each.grant.lease_id for each in found if isinstance(each, LeaseAttestation)
    ]


async def test_a_service_that_ended_well_leaves_no_gap(
    watched: Any, client: Any, chain: Any, tmp_path: Path, wall: Wall
) -> None:
    await client.store(chain(1))
    await client.acquire(chain(1))
    await watched.cache.drain()
    watched.journal.close()
    (one,) = await opened_again(tmp_path, wall)
    assert isinstance(one, LeaseAttestation)
    assert one.end is LeaseEnd.STOPPED


async def opened_again(directory: Path, wall: Wall) -> list[Attested]:
    """What is attested after a start of the next run, which delivers to nobody."""
    attestation = Attestation(
        directory,
        "node-1",
        JournalLimits(),
        DeliverySettings("127.0.0.1:1", backoff_seconds=60),
        AttestMetrics(CollectorRegistry()),
        wall,
    )
    witness = await attestation.start("run-2")
    found = attested(attestation._journal)
    await witness.close({})
    await attestation._delivery.stop()
    attestation._journal.close()
    return found


async def test_a_full_disk_delays_attestations_and_loses_none(
    cache: Any, connect: Any, chain: Any, tmp_path: Path, wall: Wall
) -> None:
    full = [True]

    def write(descriptor: int, raw: bytes) -> int:
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return os.write(descriptor, raw)

    watched = Witnessed(cache, tmp_path, wall, file=JournalFile(write=write))
    client = connect(cache)
    await client.store(chain(1))
    for _ in range(3):
        wall.now_ns += 10**9
        client.release(await client.acquire(chain(1)))
        await watched.tick()
    assert watched.written == []
    assert (tmp_path / ALIVE_FILE).stat().st_mtime_ns == 10**18, "alive without its records"
    full[0] = False
    client.release(await client.acquire(chain(1)))
    await watched.tick()
    assert len(watched.leases) == 4
    assert watched.written == [4]
    watched.journal.close()


async def test_what_cannot_be_kept_is_counted_in_a_gap_from_its_first_lease(
    cache: Any,
    connect: Any,
    chain: Any,
    tmp_path: Path,
    wall: Wall,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(witness_module, "UNWRITTEN_MAX", 2)
    watched = Witnessed(cache, tmp_path, wall)
    client = connect(cache)
    await client.store(chain(1))
    for _ in range(5):
        wall.now_ns += 10
        client.release(await client.acquire(chain(1)))
    await watched.tick()
    await watched.tick()
    gap = attested(watched.journal)[-1]
    assert isinstance(gap, Gap)
    assert (gap.reason, gap.lease_count) == (GapReason.UNWRITTEN, 3)
    assert (gap.start_time_ns, gap.end_time_ns) == (10**18 + 30, 10**18 + 50)
    assert len(watched.leases) == 2
    assert watched.witness.unwritten_count == 3
    watched.journal.close()


async def test_a_lease_that_begins_while_the_disk_is_full_is_lost_with_the_service_later(
    cache: Any, connect: Any, chain: Any, tmp_path: Path, wall: Wall
) -> None:
    full = [True]

    def write(descriptor: int, raw: bytes) -> int:
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return os.write(descriptor, raw)

    watched = Witnessed(cache, tmp_path, wall, file=JournalFile(write=write))
    client = connect(cache)
    await client.store(chain(1))
    kept = await client.acquire(chain(1))
    ended = await client.acquire(chain(1))
    for _ in range(3):
        wall.now_ns += 10**9
        await watched.tick()
    assert (tmp_path / ALIVE_FILE).stat().st_mtime_ns == 10**18, "alive without its begins"
    client.release(ended)
    full[0] = False
    for _ in range(2):
        wall.now_ns += 10**9
        await watched.tick()
    assert (tmp_path / ALIVE_FILE).stat().st_mtime_ns == 10**18 + 4 * 10**9
    watched.journal.close()  # As if it were killed here.
    found = [e for e in await opened_again(tmp_path, wall) if isinstance(e, LeaseAttestation)]
    assert {each.grant.lease_id: each.end for each in found} == {
        ended.match.lease_id: LeaseEnd.RELEASED,
        kept.match.lease_id: LeaseEnd.LOST,
    }


async def test_a_lease_that_begins_while_the_journal_is_at_its_capacity_is_not_forgotten(
    watched: Any, client: Any, chain: Any, tmp_path: Path, wall: Wall
) -> None:
    await client.store(chain(1))
    client.release(await client.acquire(chain(1)))
    await watched.tick()
    watched.journal._limits = JournalLimits(capacity_bytes=1)
    assert watched.journal.full
    wall.now_ns += 10**9
    kept = await client.acquire(chain(1))
    for _ in range(3):
        await watched.tick()
        wall.now_ns += 10**9
    assert (tmp_path / ALIVE_FILE).stat().st_mtime_ns <= 10**18 + 10**9
    watched.journal._limits = JournalLimits()
    await watched.tick()
    watched.journal.close()
    lost = [e for e in await opened_again(tmp_path, wall) if isinstance(e, LeaseAttestation)][-1]
    assert (lost.grant.lease_id, lost.end) == (kept.match.lease_id, LeaseEnd.LOST)
