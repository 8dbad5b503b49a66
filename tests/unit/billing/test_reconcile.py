"""Attestations in the ledger, and what a comparison makes of each way to differ; both databases."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from billing import reconciling
from billing.attestation import (
    Attestation,
    Blocks,
    GapSaid,
    LeaseSaid,
    attestation_from_text,
    attestation_text,
)
from billing.attestation_keeping import AttestationOutcome, AttestationSubmission
from billing.difference import Difference, Kind
from billing.meter import RecordStatus
from billing.period import HOUR_NS, Period
from billing.reconciling import Reconciliation
from billing.served import DELIVERY_NS_MAX
from billing.usage import EndReason, UsageEvent
from billing.wire import submission_of
from billing.wire_attestation import attestation_submission_of
from kvtier.v1 import attestation_pb2, usage_pb2

SECOND = 10**9
MakeEvent = Callable[..., UsageEvent]


def lease_of(lease_id: str, request_id: str, at_ns: int, **changes: Any) -> Attestation:
    """64 blocks of 16 tokens of host memory granted and served, unless `changes` say otherwise."""
    said = {
        "request_id": request_id,
        "client_name": "worker-1",
        "session_id": "s1",
        "owner": "acme/search",
        "namespace": "00",
        "block_tokens": 16,
        "end": "RELEASED",
        "granted": Blocks(8, 4),
        "served": Blocks(8, 0),
        "corrupt_blocks": 0,
        **changes,
    }
    lease = LeaseSaid(**said)
    return Attestation(lease_id, 1, "node-1", "run-1", at_ns, at_ns + SECOND, lease=lease)


def gap_of(start_ns: int, end_ns: int, reason: str = "KILLED") -> Attestation:
    gap = GapSaid(reason, None)
    return Attestation(f"gap/{start_ns}", 1, "node-1", "run-1", start_ns, end_ns, gap=gap)


class Books:
    """A till, and when its requests ended: long before now."""

    def __init__(self, till: Any, make: MakeEvent, now_ns: int) -> None:
        self.till, self._make, self.now_ns = till, make, now_ns
        self.end_ns = now_ns - 10 * HOUR_NS

    def event(self, name: str = "r1", **changes: Any) -> UsageEvent:
        times = {"start_time_ns": self.end_ns - 5 * SECOND, "end_time_ns": self.end_ns}
        return self._make(name, **(times | changes))

    def record(self, *events: UsageEvent) -> None:
        outcomes = self.till.record(*events)
        assert {each.status for each in outcomes} == {RecordStatus.ACCEPTED}, outcomes

    def attest(self, *said: Attestation) -> list[AttestationOutcome]:
        submissions = [AttestationSubmission(each, each.attestation_id.encode()) for each in said]
        found: list[AttestationOutcome] = self.till.ledger.attest(submissions).result(30)
        return found

    def differences(self, **more: Any) -> list[Difference]:
        return self.walk(**more)[0]

    def walk(
        self, period: Period | None = None, tenant: str = "", now_ns: int | None = None
    ) -> tuple[list[Difference], Reconciliation]:
        def run(connection: Any) -> tuple[list[Difference], Reconciliation]:
            walk = Reconciliation(connection, period or Period(), tenant, now_ns or self.now_ns)
            return [each for page in walk.run() for each in page], walk

        found: tuple[list[Difference], Reconciliation] = self.till.store.read(run)
        return found


@pytest.fixture
def books(till: Any, usage_event: MakeEvent, now_ns: int) -> Books:
    return Books(till, usage_event, now_ns)


def kinds(found: list[Difference]) -> list[str]:
    return [each.kind.value for each in found]


def test_attestations_are_kept_once_and_what_contradicts_them_aside(books: Books) -> None:
    one, gap = lease_of("l1", "r1", 5), gap_of(3, 9)
    assert attestation_from_text(attestation_text(one)) == one
    assert attestation_from_text(attestation_text(gap)) == gap
    statuses = [each.status.value for each in books.attest(one, gap, one)]
    assert statuses == ["accepted", "accepted", "duplicate"]
    other = replace(one, lease=replace(one.lease, served=Blocks(1, 0)))
    more = replace(one, attestation_id="l2", lease=replace(one.lease, served=Blocks(9, 0)))
    nameless = replace(one, attestation_id="")
    outcomes = books.attest(one, other, more, nameless, other)
    assert [(each.status.value, each.reason) for each in outcomes] == [
        ("duplicate", ""),
        ("conflict", "OTHER_CONTENT"),
        ("rejected", "SERVED_MORE_THAN_GRANTED"),
        ("rejected", "MISSING_ID"),
        ("conflict", "OTHER_CONTENT"),
    ]
    found = [each for each in books.differences() if each.kind is Kind.ATTESTATION_CONFLICT]
    assert sorted(each.lease_id for each in found) == ["", "l1", "l2"]
    with pytest.raises(Exception, match="only grows"):
        books.till.alter("DELETE FROM attestations", guards=True)
    with pytest.raises(Exception, match="only grows"):
        books.till.alter("UPDATE refused_attestations SET reason = ''", guards=True)


def test_all_that_was_kept_aside_is_told_page_by_page_and_to_its_tenant(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciling, "PAGE", 3)
    wire = usage_pb2.UsageEvent(schema_version=99, model="m")
    for number in range(8):
        wire.request_id, wire.tenant_id = f"e{number}", "acme" if number < 5 else "umbra"
        books.till.ledger.record([submission_of(wire)]).result(30)
    said = attestation_pb2.Attestation(schema_version=99)
    for number in range(7):
        said.attestation_id, said.lease.owner = f"a{number}", "acme/x" if number < 4 else "umbra"
        books.till.ledger.attest([attestation_submission_of(said)]).result(30)
    kinds_of = {Kind.EVENT_REFUSED: "request_id", Kind.ATTESTATION_CONFLICT: "lease_id"}
    for tenant, events, leases in (("", 8, 7), ("acme", 5, 4), ("umbra", 3, 3), ("nobody", 0, 0)):
        found, walk = books.walk(tenant=tenant)
        names = Counter(each.kind for each in found)
        assert (names[Kind.EVENT_REFUSED], names[Kind.ATTESTATION_CONFLICT]) == (events, leases)
        assert len({getattr(each, kinds_of[each.kind]) for each in found}) == events + leases
        assert walk.unexplained_count == events + leases
        assert not tenant or {each.tenant_id for each in found} <= {tenant}


def test_hits_that_leases_served_are_no_difference_nor_are_those_in_gpu_pages(
    books: Books,
) -> None:
    books.record(
        books.event(hit=128, lease_ids=("l1",)),
        books.event("r2", hit=256, hit_gpu=256, hit_host=0, lease_ids=()),
        books.event("r3", hit=0, lease_ids=None),
    )
    books.attest(lease_of("l1", "r1", books.end_ns - SECOND))
    found, walk = books.walk()
    assert found == []
    assert (walk.request_count, walk.lease_count, walk.unexplained_count) == (3, 1, 0)
    assert (walk.tokens["hit_gpu"], walk.tokens["hit_host"]) == (256, 128)


def test_more_hits_than_any_lease_served_are_unexplained_to_the_token(books: Books) -> None:
    books.record(books.event(hit=144, lease_ids=("l1",)), books.event("r2", hit=16, lease_ids=()))
    books.attest(lease_of("l1", "r1", books.end_ns - SECOND))
    found, walk = books.walk()
    assert kinds(found) == ["HITS_NOT_SERVED", "HITS_NOT_SERVED"]
    assert [(each.request_id, each.subject, each.expected, each.found) for each in found] == [
        ("r1", "host", 128, 144),
        ("r2", "host", 0, 16),
    ]
    assert "16 came from nowhere" in found[0].explanation
    assert walk.unexplained_count == 2


def test_hits_of_the_ssd_are_not_covered_by_what_host_memory_served(books: Books) -> None:
    books.record(books.event(hit=128, hit_host=64, hit_ssd=64, lease_ids=("l1",)))
    books.attest(lease_of("l1", "r1", books.end_ns - SECOND))
    assert kinds(books.differences()) == ["RESTORED_NOT_USED", "HITS_NOT_SERVED"]


def test_hits_of_the_shared_tier_are_compared_as_those_of_the_others(books: Books) -> None:
    served = Blocks(4, 0, 4)
    books.record(
        books.event(hit=128, hit_host=64, hit_shared=64, lease_ids=("l1",)),
        books.event("r2", hit=128, hit_host=0, hit_shared=128, lease_ids=("l2",)),
    )
    one = lease_of("l1", "r1", books.end_ns - SECOND, granted=served, served=served)
    other = lease_of("l2", "r2", books.end_ns - SECOND)
    books.attest(one, other)
    assert attestation_from_text(attestation_text(one)) == one
    assert "shared" not in attestation_text(other)
    assert kinds(books.differences()) == ["RESTORED_NOT_USED", "HITS_NOT_SERVED"]


def test_what_was_restored_and_not_used_is_explained(books: Books) -> None:
    books.record(books.event(hit=64, lease_ids=("l1", "l2")))
    end_ns = books.end_ns - SECOND
    books.attest(lease_of("l1", "r1", end_ns), lease_of("l2", "r1", end_ns, served=Blocks(0, 0)))
    (one,) = books.differences()
    assert one.kind is Kind.RESTORED_NOT_USED
    assert (one.expected, one.found) == (128, 64)


def test_a_lease_that_its_service_lost_may_have_served_what_it_granted_and_no_more(
    books: Books,
) -> None:
    books.record(
        books.event(hit=128, lease_ids=("l1",)),
        books.event("r2", hit=144, lease_ids=("l2",)),
    )
    for name, request in (("l1", "r1"), ("l2", "r2")):
        books.attest(lease_of(name, request, books.end_ns, end="LOST", served=None))
    found = [each for each in books.differences() if each.subject == "host"]
    assert kinds(found) == ["LEASE_LOST", "HITS_NOT_SERVED"]


def test_a_missing_attestation_is_explained_by_a_gap_of_its_time_or_by_its_youth(
    books: Books,
) -> None:
    books.record(books.event(hit=128, lease_ids=("l1",)))
    (missing, hits) = books.differences()
    assert (missing.kind, missing.lease_id) == (Kind.ATTESTATION_MISSING, "l1")
    assert hits.kind is Kind.HITS_NOT_SERVED
    young = books.differences(now_ns=books.end_ns + DELIVERY_NS_MAX - 1)
    assert kinds(young) == ["ATTESTATION_PENDING"]
    books.attest(gap_of(books.end_ns + SECOND, books.end_ns + 2 * SECOND))
    assert kinds(books.differences()) == ["ATTESTATION_MISSING", "HITS_NOT_SERVED"]
    books.attest(gap_of(books.end_ns - SECOND, books.end_ns + 2 * SECOND, "UNWRITTEN"))
    (excused,) = books.differences()
    assert excused.kind is Kind.ATTESTATION_IN_GAP
    assert "could not write its journal" in excused.explanation


def test_leases_of_another_request_or_tenant_count_for_nothing_and_are_named(
    books: Books,
) -> None:
    books.record(
        books.event(hit=128, lease_ids=("l2",)),
        books.event("r2", hit=128, lease_ids=("l2",)),
        books.event("r3", hit=128, tenant_id="umbra", lease_ids=("l3",)),
    )
    at_ns = books.end_ns - SECOND
    books.attest(lease_of("l2", "r2", at_ns), lease_of("l3", "r3", at_ns))
    found = books.differences()
    assert kinds(found) == ["LEASE_OF_OTHER_REQUEST", "HITS_NOT_SERVED", "LEASE_OF_OTHER_TENANT"]
    assert "r2" in found[0].explanation


def test_leases_that_no_event_names_are_told_apart(books: Books) -> None:
    early, late = books.end_ns - 4 * SECOND, books.end_ns + SECOND
    books.record(
        books.event("hides", hit=0, lease_ids=()),
        books.event("late", hit=0, lease_ids=()),
        books.event("silent", hit=0, lease_ids=None),
        books.event(
            "lost", hit=0, miss=0, output=0, lease_ids=None, end_reason=EndReason.WORKER_LOST
        ),
        books.event("older", hit=64, lease_ids=None),
    )
    books.attest(
        lease_of("1", "hides", early),
        lease_of("2", "late", late),
        lease_of("3", "silent", early),
        lease_of("4", "lost", early),
        lease_of("5", "nobody", early),
        lease_of("6", "nobody", books.now_ns - SECOND),
        lease_of("7", "older", early),
    )
    found = {(each.lease_id or each.request_id): each for each in books.differences()}
    assert {name: each.kind.value for name, each in found.items()} == {
        "older": "LEASES_UNSAID",
        "1": "LEASE_NOT_NAMED",
        "2": "LEASE_AFTER_END",
        "4": "LEASE_OF_LOST_REQUEST",
        "5": "EVENT_MISSING",
        "6": "EVENT_PENDING",
    }
    assert [name for name, each in found.items() if not each.kind.explained] == ["1", "5"]


def test_a_period_and_a_tenant_are_compared_alone(books: Books) -> None:
    books.record(
        books.event(hit=144, lease_ids=()),
        books.event("r2", hit=16, tenant_id="umbra", lease_ids=()),
        books.event("r3", hit=16, end_time_ns=books.end_ns + HOUR_NS, lease_ids=()),
    )
    assert len(books.differences()) == 3
    hour = Period(books.end_ns, books.end_ns + 1)
    assert [each.request_id for each in books.differences(period=hour)] == ["r1", "r2"]
    assert [each.request_id for each in books.differences(tenant="umbra")] == ["r2"]


def test_pages_give_what_one_page_gives(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"r{number}" for number in range(11)]
    books.record(*(books.event(name, hit=16, lease_ids=(f"of-{name}",)) for name in names))
    books.attest(*(lease_of(f"of-{name}", name, books.end_ns) for name in names[3:]))
    whole = books.differences()
    monkeypatch.setattr(reconciling, "PAGE", 3)
    assert sorted(books.differences(), key=repr) == sorted(whole, key=repr)
    assert len(whole) == 3 * 2 + 8


def test_what_somebody_changed_in_the_database_is_found(books: Books) -> None:
    books.record(books.event(lease_ids=None, hit=0), books.event("r2", lease_ids=None, hit=0))
    books.till.alter(
        "UPDATE entries SET miss = miss + 7 WHERE position = 1",
        "UPDATE postings SET quantity_tokens = 9 WHERE position = 2 AND token_class = 'miss'",
        "UPDATE rollups SET output = output + 1",
    )
    found = books.differences()
    assert kinds(found) == ["COLUMNS_DIFFER", "POSTINGS_DIFFER", "STATEMENT_DIFFERS"]
    assert (found[0].expected, found[0].found) == (72, 79)
    assert (found[1].request_id, found[1].found) == ("r2", 9)
    assert (found[2].subject, found[2].found) == ("output", 21)


def test_an_event_that_contradicts_the_ledger_is_told(books: Books) -> None:
    event = books.event(lease_ids=None, hit=0)
    books.record(event)
    (outcome,) = books.till.record(replace(event, model="other"))
    assert outcome.status is RecordStatus.CONFLICT
    (one,) = books.differences()
    assert (one.kind, one.request_id) == (Kind.EVENT_REFUSED, "r1")
