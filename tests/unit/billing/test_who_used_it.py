"""Who asked, under which leases, and what was kept: zero, unknown and not applicable stay apart,
and an event that says none of it keeps the text it always had.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from billing.errors import EventUnknownError
from billing.ledger_lookup import FoundEntry, found_entries
from billing.meter import RecordStatus
from billing.prompt_proof import PromptProof, ProvenRun
from billing.report import UsageQuery, usage_rows
from billing.usage import (
    EndReason,
    Refusal,
    StorageUse,
    UsageEvent,
    event_from_text,
    event_text,
    refusal_of,
    texts_of_before,
)
from billing.wire import submission_of
from billing.wire_event import event_message

Events = Callable[..., UsageEvent]
Till = Any

SAID: dict[str, Any] = {
    "project_id": "search",
    "user_id": "",
    "key_id": "k1",
    "session_id": "s/1 ü",
    "lease_ids": ("l1", "l2"),
    "storage": StorageUse(host=0, ssd=640_000),
}

PROOF = PromptProof(
    64,
    b"k" * 16,
    b"n" * 16,
    (
        ProvenRun((("host", 1),), b"a" * 32),
        ProvenRun((("computed", 1), ("host", 1)), b"b" * 32),
        ProvenRun((("computed", 1),), b"c" * 32),
    ),
)
"""Of 128 hit tokens from host and 72 miss tokens."""


def test_an_event_that_says_all_of_it_has_this_text(usage_event: Events) -> None:
    text = event_text(usage_event(**SAID))
    for part in (
        '"hit_ssd":0,"key_id":"k1","lease_ids":["l1","l2"],"miss":72,',
        '"output":10,"project_id":"search","prompt":200,',
        '"schema_version":1,"session_id":"s/1 \\u00fc","start_time_ns":',
        '"storage":{"gpu":null,"host":0,"shared":null,"ssd":640000},"tenant_id":"acme",',
        '"ttft_ns":120000000,"user_id":""}',
    ):
        assert part in text


def test_an_event_that_says_none_of_it_has_the_text_of_before(usage_event: Events) -> None:
    plain = usage_event()
    proven = usage_event(**SAID, proof=PROOF)
    assert texts_of_before(proven) == [event_text(usage_event(**SAID)), event_text(plain)]
    for name in SAID:
        assert f'"{name}"' not in event_text(plain)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        SAID,
        {"project_id": ""},
        {"lease_ids": ()},
        {"storage": StorageUse()},
        {"storage": StorageUse(0, 0, 0, 0)},
        {"proof": PROOF},
        {"proof": replace(PROOF, digest_blocks=3, digests=b"d" * 32)},
        {"proof": PROOF, **SAID},
    ],
)
def test_what_is_said_survives_the_text_and_the_wire(
    usage_event: Events, changes: dict[str, Any]
) -> None:
    event = usage_event(**changes)
    assert event_from_text(event_text(event)) == event
    assert submission_of(event_message(event)).event == event


def test_zero_unknown_and_none_are_three_texts(usage_event: Events) -> None:
    said = [None, StorageUse(), StorageUse(host=0)]
    assert len({event_text(usage_event(storage=each)) for each in said}) == 3
    assert len({event_text(usage_event(project_id=each)) for each in (None, "", "0")}) == 3
    assert len({event_text(usage_event(lease_ids=each)) for each in (None, (), ("",))}) == 3


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"storage": StorageUse(gpu=-1)}, Refusal.NEGATIVE_QUANTITY),
        ({"storage": StorageUse(ssd=10**17 + 1)}, Refusal.QUANTITY_TOO_LARGE),
        ({"project_id": "a\nb"}, Refusal.INVALID_TEXT),
        ({"key_id": "x" * 1025}, Refusal.INVALID_TEXT),
        ({"lease_ids": ("l",) * 1001}, Refusal.TOO_MANY_LEASES),
        ({"proof": PROOF}, None),
        ({"proof": replace(PROOF, digest_blocks=2, digests=b"d" * 64)}, None),
        ({"proof": replace(PROOF, digest_blocks=2, digests=b"d" * 32)}, Refusal.PROOF_MALFORMED),
        ({"proof": replace(PROOF, digests=b"d" * 32)}, Refusal.PROOF_MALFORMED),
        ({"proof": replace(PROOF, commitment=b"k")}, Refusal.PROOF_MALFORMED),
        ({"proof": replace(PROOF, namespace_mark=b"")}, Refusal.PROOF_MALFORMED),
        ({"proof": replace(PROOF, runs=())}, Refusal.PROOF_MALFORMED),
        ({"proof": replace(PROOF, runs=PROOF.runs * 30)}, Refusal.PROOF_MALFORMED),
        ({"proof": replace(PROOF, block_tokens=0)}, Refusal.PROOF_MALFORMED),
        ({"proof": replace(PROOF, digest_blocks=-1)}, Refusal.PROOF_MALFORMED),
        ({"proof": replace(PROOF, runs=(ProvenRun((), b"a" * 32),))}, Refusal.PROOF_MALFORMED),
        ({"proof": replace(PROOF, block_tokens=32)}, Refusal.PROOF_SUM),
        ({"proof": replace(PROOF, runs=PROOF.runs[1:])}, Refusal.PROOF_SUM),
        ({"proof": PROOF, "hit": 64, "miss": 136}, Refusal.PROOF_SUM),
        ({"proof": PROOF, "miss": 65}, None),
        ({"proof": PROOF, "miss": 64}, Refusal.PROOF_SUM),
        ({"session_id": "strange \x00 names dodge no bill"}, None),
    ],
)
def test_what_makes_no_sense_is_refused(
    usage_event: Events, now_ns: int, changes: dict[str, Any], refusal: Refusal | None
) -> None:
    assert refusal_of(usage_event(**changes), now_ns) is refusal


def test_an_event_sent_before_and_after_an_upgrade_is_a_duplicate(
    till: Till, usage_event: Events
) -> None:
    till.record(usage_event("a"))
    (again,) = till.record(usage_event("a", **SAID))
    assert (again.status, again.position) == (RecordStatus.DUPLICATE, 1)
    till.record(usage_event("b", **SAID))
    (less,) = till.record(usage_event("b"))
    assert less.status is RecordStatus.CONFLICT


@pytest.mark.parametrize("known", [{}, SAID])
def test_an_event_that_proves_more_than_it_did_before_an_upgrade_is_a_duplicate(
    till: Till, usage_event: Events, known: dict[str, Any]
) -> None:
    till.record(usage_event("a", **known))
    (again,) = till.record(usage_event("a", **SAID, proof=PROOF))
    assert (again.status, again.position) == (RecordStatus.DUPLICATE, 1)


def test_another_proof_is_another_event(till: Till, usage_event: Events) -> None:
    till.record(usage_event("a", proof=PROOF))
    (same,) = till.record(usage_event("a", proof=PROOF))
    (none,) = till.record(usage_event("a"))
    (other,) = till.record(usage_event("a", proof=replace(PROOF, commitment=b"l" * 16)))
    assert [each.status for each in (same, none, other)] == [
        RecordStatus.DUPLICATE,
        RecordStatus.CONFLICT,
        RecordStatus.CONFLICT,
    ]
    assert till.verify().problem == ""


def test_the_proof_of_a_newer_scheme_keeps_no_event_out(till: Till, usage_event: Events) -> None:
    message = event_message(usage_event("a", proof=PROOF))
    message.proof.scheme = 2
    assert submission_of(message).event == usage_event("a")


def test_an_event_that_proves_its_prompt_has_this_text(usage_event: Events) -> None:
    proof = replace(PROOF, digest_blocks=4, digests=b"d" * 32)
    assert (
        f',"prompt":200,"proof":{{"block_tokens":64,"commitment":"{"6b" * 16}","digest_blocks":4'
        ',"digests":"ZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGQ="'
        f',"namespace_mark":"{"6e" * 16}","runs":[{{"digest":"{"61" * 32}","host":1}}'
        f',{{"computed":1,"digest":"{"62" * 32}","host":1}}'
        f',{{"computed":1,"digest":"{"63" * 32}"}}],"scheme":1}},"request_id":"r1"'
    ) in event_text(usage_event(proof=proof))


@pytest.mark.parametrize(
    ("what", "by"),
    [
        ('"scheme":1', '"scheme":2'),
        ('"host":1', '"host":01'),
        ('"host":1', '"host":"1"'),
        ('"block_tokens":64', '"block_tokens":64.0'),
        ('"digest":"61', '"digest":"6G'),
        ('"digest":"6e', '"digest":"6E'),
        (',"scheme":1', ',"scheme":1,"extra":0'),
        ('"proof":{', '"proof":null,"x":{'),
    ],
)
def test_what_is_not_exactly_such_a_text_is_no_stored_event(
    usage_event: Events, what: str, by: str
) -> None:
    runs = (*PROOF.runs[:2], ProvenRun((("computed", 1),), b"n" * 32))
    text = event_text(usage_event(proof=replace(PROOF, runs=runs)))
    assert what in text
    with pytest.raises(ValueError):
        event_from_text(text.replace(what, by))


def test_reports_are_by_project_and_key_and_say_what_is_unknown(
    till: Till, usage_event: Events
) -> None:
    till.record(
        usage_event("a", project_id="search", key_id="k1"),
        usage_event("b", project_id="search", key_id=""),
        usage_event("c", project_id=""),
        usage_event("d"),
    )

    def groups(**query: Any) -> list[tuple[str, ...]]:
        rows = till.store.read(lambda c: usage_rows(c, UsageQuery(**query)))
        return [row.group for row in rows]

    assert groups(group_by=("project",)) == [("",), ("*unknown",), ("search",)]
    assert groups(group_by=("key",), project_id="search") == [("",), ("k1",)]
    assert till.verify().problem == ""


def _found(till: Till, *arguments: str) -> list[FoundEntry]:
    found: list[FoundEntry] = till.store.read(lambda c: found_entries(c, *arguments))
    return found


def test_an_event_is_found_by_its_id_and_by_the_clients_own(
    till: Till, usage_event: Events
) -> None:
    mine = [
        usage_event("r1", client_request_id="mine", **SAID),
        usage_event("r2", client_request_id="mine", tenant_id="beta"),
        usage_event("mine", client_request_id="other"),
        usage_event("old", start_time_ns=0, end_time_ns=1),
    ]
    till.record(*mine)
    assert [each.event for each in _found(till, "mine")] == [mine[2], mine[0], mine[1]]
    (found,) = _found(till, "r1")
    assert (found.event, found.position, found.currency) == (mine[0], 1, "CNY")
    assert (found.price_version, found.amount > 0) == ("second", True)
    (unrated,) = _found(till, "old")
    assert (unrated.currency, unrated.price_version, unrated.amount) == ("", "", 0)


def test_what_was_rated_and_cost_nothing_has_its_currency(till: Till, usage_event: Events) -> None:
    till.record(usage_event("lost", hit=0, miss=0, output=0, end_reason=EndReason.WORKER_LOST))
    (found,) = till.store.read(lambda c: found_entries(c, "lost", "acme", ""))
    assert (found.amount, found.currency, found.price_version) == (0, "CNY", "second")
    till.record(usage_event("unrated", start_time_ns=0, end_time_ns=1))
    (found,) = till.store.read(lambda c: found_entries(c, "unrated", "acme", ""))
    assert (found.currency, found.price_version) == ("", "")


@pytest.mark.parametrize(
    "arguments",
    [("nobody",), ("r1", "beta"), ("r1", "acme", "billing"), ("r1\x00",), ("",)],
)
def test_what_is_not_there_or_anothers_is_unknown(
    till: Till, usage_event: Events, arguments: tuple[str, ...]
) -> None:
    till.record(usage_event("r1", project_id="search"))
    assert _found(till, "r1", "acme", "search")
    with pytest.raises(EventUnknownError):
        _found(till, *arguments)


def test_every_name_is_found_that_is_fit_for_one(till: Till, usage_event: Events) -> None:
    till.record(usage_event("a", client_request_id="naïve ☃"), usage_event("b"))
    assert [each.event.request_id for each in _found(till, "naïve ☃")] == ["a"]
    (strange,) = till.record(replace(usage_event("c"), client_request_id="x\x00"))
    assert strange.status is RecordStatus.ACCEPTED
