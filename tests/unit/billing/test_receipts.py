"""Receipts: what holds, and what is found and where when something does not."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from billing.checkpoint import key_id_of, public_bytes, sign_key
from billing.correction import CorrectionAsk, CorrectionKind
from billing.errors import EventUnknownError, ReceiptAmbiguousError
from billing.price_book_file import parse_price_book
from billing.receipt import file_bytes, marks_of, signed_bytes
from billing.receipt_check import Given, Report, Result, check_receipt
from billing.receipt_issue import draft_of
from billing.receipt_servicer import ReceiptParts, ReceiptServicer
from billing.usage import EndReason, UsageEvent
from kvtier.v1 import receipt_pb2
from tests.receipts import proven, receipt_file, salt_of

Events = Callable[..., UsageEvent]
Till = Any

RUNS = [("gpu", 3), ("host", 2), ("ssd", 1), ("computed", 2)]


def failed(report: Report) -> dict[str, str]:
    """Where, by check."""
    return {f.check: f.where for f in report.findings if f.result is Result.FAILED}


def outcome(report: Report, check: str) -> Result:
    (found,) = [each for each in report.findings if each.check == check]
    return found.result


def resigned(raw: bytes, private: Ed25519PrivateKey, change: Callable[[Any], None]) -> bytes:
    """Written anew by somebody who has a key, with marks that fit."""
    data = json.loads(raw)
    receipt = data["receipt"]
    change(receipt)
    del receipt["marks"]
    receipt = {**receipt, "marks": marks_of(receipt)}
    opening = bytes.fromhex(data.get("opening", ""))
    return file_bytes(receipt, private.sign(signed_bytes(receipt)), opening)


@pytest.fixture
def ledger_key(till: Till, tmp_path: Any) -> Ed25519PrivateKey:
    """The ledger's own: what a provider who lies can sign with."""
    from billing.ledger_key import KeyFile

    found = KeyFile(tmp_path / "ledger").load()
    assert found is not None
    return found


def test_a_receipt_holds_with_its_tokens_the_ledgers_key_and_its_book(
    till: Till, usage_event: Events, book_text: str
) -> None:
    event, prompt = proven(usage_event("r1"), RUNS, tail=5, every=1)
    till.record(usage_event("r0"), event)
    raw = receipt_file(till, "r1", salt_of(event))
    book = parse_price_book(book_text, "b")
    given = Given(till.ledger.keys[-1].public_key, prompt, book)
    report = check_receipt(raw, given)
    assert failed(report) == {}
    assert {f.result for f in report.findings} == {Result.HOLDS}
    assert report.receipt is not None
    assert report.receipt["entry"]["position"] == 2
    assert report.receipt["entry"]["hash"] == till.ledger.head.hash.hex()
    assert len(raw) < 16_000


def test_without_anything_given_what_cannot_be_checked_is_said(
    till: Till, usage_event: Events
) -> None:
    event, prompt = proven(usage_event("r1"), RUNS)
    till.record(event, usage_event("r2"))
    report = check_receipt(receipt_file(till, "r1"))
    assert report.verified
    assert report.sealed
    assert (outcome(report, "tokens"), outcome(report, "opening")) == (Result.SKIPPED,) * 2
    assert failed(check_receipt(receipt_file(till, "r1"), Given(token_ids=prompt))) == {
        "tokens": "opening"
    }
    bare = check_receipt(receipt_file(till, "r2"))
    assert (bare.verified, outcome(bare, "blocks")) == (True, Result.SKIPPED)
    asked = check_receipt(receipt_file(till, "r2"), Given(token_ids=[1]))
    assert failed(asked) == {"tokens": "event.proof"}


@pytest.mark.parametrize("place", [0, 1, 63, 64, 191, 192, 320, 383, 384, 506])
def test_the_first_block_that_is_another_is_named(
    till: Till, usage_event: Events, place: int
) -> None:
    event, prompt = proven(usage_event("r1"), RUNS, tail=5, every=1)
    till.record(event)
    prompt[place] += 1
    report = check_receipt(receipt_file(till, "r1", salt_of(event)), Given(token_ids=prompt))
    assert failed(report) == {"tokens": f"block {place // 64}"}


def test_with_digests_of_runs_alone_the_run_is_named(till: Till, usage_event: Events) -> None:
    event, prompt = proven(usage_event("r1"), RUNS, tail=5)
    till.record(event)
    raw = receipt_file(till, "r1", salt_of(event))
    for place, where in ((0, "blocks 0 to 2"), (200, "blocks 3 to 4"), (330, "block 5")):
        other = [*prompt[:place], prompt[place] + 1, *prompt[place + 1 :]]
        assert failed(check_receipt(raw, Given(token_ids=other))) == {"tokens": where}


def test_too_few_and_too_many_tokens_are_found(till: Till, usage_event: Events) -> None:
    event, prompt = proven(usage_event("r1"), RUNS, tail=5)
    cancelled, _ = proven(usage_event("r2", end_reason=EndReason.CANCELLED), RUNS)
    till.record(event, cancelled)
    raw = receipt_file(till, "r1", salt_of(event))
    for given, where in ((prompt[:-1], "token 507"), ([*prompt, 1], "token 508"), ([], "token 1")):
        assert failed(check_receipt(raw, Given(token_ids=given))) == {"tokens": where}
    assert failed(check_receipt(raw, Given(token_ids=[-1, *prompt]))) == {"tokens": "token 1"}
    # A prompt that was not reached whole is proven as far as it was.
    early = receipt_file(till, "r2", salt_of(cancelled))
    _, whole = proven(usage_event("r2"), [*RUNS, ("computed", 9)])
    assert check_receipt(early, Given(token_ids=whole)).verified


def test_another_requests_opening_opens_nothing(till: Till, usage_event: Events) -> None:
    event, prompt = proven(usage_event("r1"), RUNS)
    till.record(event)
    for stranger in (replace(event, tenant_id="beta"), replace(event, request_id="r2")):
        raw = receipt_file(till, "r1", salt_of(stranger))
        report = check_receipt(raw, Given(token_ids=prompt))
        assert failed(report) == {"opening": "opening", "tokens": "opening"}


def test_equal_prompts_of_two_requests_have_no_digest_in_common(
    till: Till, usage_event: Events
) -> None:
    one, _ = proven(usage_event("r1"), RUNS, every=1)
    other, _ = proven(usage_event("r2"), RUNS, every=1)
    assert one.proof is not None
    assert other.proof is not None
    digests = [{digest for _, digest in each.digest_ends(512)} for each in (one.proof, other.proof)]
    assert digests[0].isdisjoint(digests[1])
    assert one.proof.commitment != other.proof.commitment


def test_an_old_public_key_is_enough_and_a_strangers_is_not(
    till: Till, usage_event: Events
) -> None:
    till.record(usage_event("r1"))
    before = receipt_file(till, "r1")
    old = till.ledger.keys[-1].public_key
    till.ledger.rotate_key().result(30)
    new = till.ledger.keys[-1].public_key
    after = receipt_file(till, "r1")
    assert check_receipt(before, Given(old)).verified
    assert check_receipt(after, Given(old)).verified
    assert check_receipt(after, Given(new)).verified
    assert failed(check_receipt(before, Given(new))) == {"keys": "keys"}
    stranger = public_bytes(Ed25519PrivateKey.generate())
    assert failed(check_receipt(after, Given(stranger))) == {"keys": "keys"}


def test_whoever_writes_a_receipt_anew_with_his_own_key_is_found(
    till: Till, usage_event: Events
) -> None:
    till.record(usage_event("r1"))
    raw, mine = receipt_file(till, "r1"), Ed25519PrivateKey.generate()

    def own_key(receipt: Any) -> None:
        key = sign_key(mine, public_bytes(mine), receipt["ledger"], 1, 5)
        receipt["keys"] = [
            {
                "number": 1,
                "public_key": key.public_key.hex(),
                "signature": key.signature.hex(),
                "time_ns": 5,
            }
        ]
        receipt["key"] = key_id_of(public_bytes(mine))

    forged = resigned(raw, mine, own_key)
    assert check_receipt(forged).verified, "by its own word alone"
    assert failed(check_receipt(forged, Given(till.ledger.keys[0].public_key))) == {"keys": "keys"}
    # With the ledger's key left in place the signature is not that key's.
    kept = resigned(raw, mine, lambda receipt: receipt.update(amount="0"))
    assert failed(check_receipt(kept))["signature"] == "signature"


def _amount(receipt: Any) -> None:
    receipt["amount"] = receipt["owed"] = "0.5"


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda r: r["lines"][1].update(price="2"), {"lines": "lines[1].price"}),
        (lambda r: r["lines"][0].update(quantity=1), {"lines": "lines[0].quantity"}),
        (lambda r: r["lines"].pop(), {"lines": "lines"}),
        (lambda r: r["lines"].append(r["lines"][0]), {"lines": "lines"}),
        (_amount, {"amount": "amount"}),
        (lambda r: r.update(owed="0.5"), {"corrections": "owed"}),
        (lambda r: r.update(currency="USD"), {"amount": "currency"}),
        (lambda r: r["entry"].update(position=7), {"entry": "entry.hash"}),
        (lambda r: r["entry"].update(position=1), {"entry": "entry.previous_hash"}),
        (lambda r: r["entry"].update(previous_hash="0" * 64), {"entry": "entry.hash"}),
        (lambda r: r["entry"].update(recorded_time_ns=2**62), {"entry": "entry.hash"}),
        (lambda r: r["event"].update(model="other"), {"entry": "entry.hash"}),
        (lambda r: r["event"].update(user_id="ann"), {"entry": "entry.hash"}),
        (
            lambda r: r["event"].update(output=11),
            {"lines": "lines[2].amount", "amount": "amount", "entry": "entry.hash"},
        ),
        (lambda r: r["event"].update(hit=1), {"event": "event"}),
        (lambda r: r["event"]["proof"].update(commitment="0" * 32), {"entry": "entry.hash"}),
        (lambda r: r["event"]["proof"]["runs"].pop(), {"event": "event"}),
        (lambda r: r["price_versions"].pop(), {"prices": "entry.price"}),
        (
            lambda r: r["price_versions"][0].update(name="other"),
            {"prices": "price_versions[0]"},
        ),
        (lambda r: r.update(extra=1), {"form": "extra"}),
        (lambda r: r.pop("owed"), {"form": "owed"}),
        (lambda r: r.update(format=2), {"form": "format"}),
        (lambda r: r["lines"][0].update(amount="1.0"), {"form": "lines[0].amount"}),
        (lambda r: r["keys"].clear(), {"signature": "key", "keys": "keys"}),
    ],
)
def test_a_lie_that_the_ledgers_own_key_signed_is_found_where_it_is(
    till: Till,
    usage_event: Events,
    ledger_key: Ed25519PrivateKey,
    change: Callable[[Any], None],
    where: dict[str, str],
) -> None:
    event, _ = proven(usage_event("r1"), RUNS)
    till.record(usage_event("r0"), event)
    raw = resigned(receipt_file(till, "r1"), ledger_key, change)
    assert failed(check_receipt(raw)) == where


def _ask(kind: CorrectionKind, name: str, amount: str = "") -> CorrectionAsk:
    return CorrectionAsk(name, kind, "r1", "because", "ann", Decimal(amount) if amount else None)


def test_corrections_until_then_are_in_it_and_add_up(
    till: Till, usage_event: Events, ledger_key: Ed25519PrivateKey
) -> None:
    till.record(usage_event("r1"), usage_event("r2"))
    before = receipt_file(till, "r1")
    kinds = CorrectionKind
    till.ledger.correct(_ask(kinds.CREDIT, "c1", "0.0001")).result(30)
    till.ledger.correct(_ask(kinds.CHARGE, "c2", "3")).result(30)
    till.record(usage_event("r3"))
    till.ledger.correct(_ask(kinds.REVERSE, "c3")).result(30)
    report = check_receipt(receipt_file(till, "r1"))
    assert failed(report) == {}
    assert report.receipt is not None
    assert [each["position"] for each in report.receipt["corrections"]] == [3, 4, 6]
    assert report.receipt["owed"] == "0"
    assert check_receipt(before).verified

    def entry(index: int, **said: Any) -> Callable[[Any], None]:
        return lambda r: r["corrections"][index].update(said)

    def text(index: int, **said: Any) -> Callable[[Any], None]:
        return lambda r: r["corrections"][index]["correction"].update(said)

    changes: list[tuple[Callable[[Any], Any], str]] = [
        (lambda r: r["corrections"].pop(), "owed"),
        (lambda r: r["corrections"].pop(0), "corrections[1].correction"),
        (entry(0, position=2), "corrections[0].previous_hash"),
        (entry(0, position=1), "corrections[0].position"),
        (entry(1, previous_hash="0" * 64), "corrections[1].previous_hash"),
        (entry(2, hash="0" * 64), "corrections[2].hash"),
        (entry(0, price="0" * 64), "corrections[0].price"),
        (text(1, amount="2"), "corrections[1].correction"),
        (text(1, reason="x"), "corrections[1].hash"),
        (text(1, corrects=2), "corrections[1].correction"),
        (text(0, kind=7), "corrections[0].correction"),
    ]
    for change, where in changes:
        raw = resigned(receipt_file(till, "r1"), ledger_key, change)
        assert where in failed(check_receipt(raw)).values(), where


def test_what_no_price_covered_has_none_and_a_settlement_brings_its_own(
    open_till: Callable[..., Till], usage_event: Events, book_text: str
) -> None:
    till = open_till()
    till.record(usage_event("r1", start_time_ns=0, end_time_ns=1))
    unrated = check_receipt(receipt_file(till, "r1"))
    assert failed(unrated) == {}
    assert unrated.receipt is not None
    assert (unrated.receipt["currency"], unrated.receipt["amount"]) == ("", "0")
    till.close()
    early = book_text.replace("2025-01-01T00:00:00Z", "1970-01-01T00:00:00Z")
    assert early != book_text
    till = open_till(parse_price_book(early, "b"))
    till.ledger.correct(_ask(CorrectionKind.SETTLE, "s1")).result(30)
    till.ledger.correct(_ask(CorrectionKind.CREDIT, "c1", "0.0001")).result(30)
    settled = check_receipt(receipt_file(till, "r1"))
    assert failed(settled) == {}
    assert settled.receipt is not None
    assert settled.receipt["currency"] == "CNY"
    assert Decimal(settled.receipt["owed"]) > 0


async def test_what_is_recorded_until_a_receipt_is_issued_is_in_it(
    till: Till, usage_event: Events
) -> None:
    till.record(usage_event("r1"))

    class LateStore:
        """A correction is recorded right behind the reader's snapshot."""

        def read(self, query: Any) -> Any:
            found = till.store.read(query)
            till.clock.now_ns += 10**9
            till.ledger.correct(_ask(CorrectionKind.CREDIT, "c1", "0.0001")).result(30)
            till.clock.now_ns += 10**9
            return found

    with ThreadPoolExecutor(1) as readers:
        servicer = ReceiptServicer(ReceiptParts(till.ledger, LateStore(), readers))  # type: ignore[arg-type]
        request = receipt_pb2.GetReceiptRequest(id="r1")
        reply = await servicer.GetReceipt(request, None)  # type: ignore[arg-type]
    report = check_receipt(reply.receipt)
    assert failed(report) == {}
    assert report.receipt is not None
    (correction,) = report.receipt["corrections"]
    issued = report.receipt["issued_time_ns"]
    assert (issued - correction["recorded_time_ns"], issued) == (10**9, till.clock.now_ns)


def test_the_book_that_is_given_is_held_against_a_settlements_price_too(
    open_till: Callable[..., Till], usage_event: Events, book_text: str
) -> None:
    till = open_till()
    till.record(usage_event("r1", start_time_ns=0, end_time_ns=1))
    till.close()
    early = book_text.replace("2025-01-01T00:00:00Z", "1970-01-01T00:00:00Z")
    till = open_till(parse_price_book(early, "b"))
    till.ledger.correct(_ask(CorrectionKind.CHARGE, "c0", "1")).exception(30)
    till.ledger.correct(_ask(CorrectionKind.SETTLE, "s1")).result(30)
    receipt = receipt_file(till, "r1")
    report = check_receipt(receipt, Given(book=parse_price_book(early, "b")))
    assert failed(report) == {}
    (note,) = [each.note for each in report.findings if each.check == "prices"]
    assert "first" in note
    assert "as in the book" in note
    dearer = parse_price_book(early.replace('output = "2"', 'output = "1"'), "b")
    for other in (dearer, parse_price_book(book_text, "b")):
        report = check_receipt(receipt, Given(book=other))
        assert failed(report) == {"prices": "corrections[0].price"}


def test_a_book_with_other_prices_is_not_the_receipts(
    till: Till, usage_event: Events, book_text: str
) -> None:
    till.record(usage_event("r1"))
    receipt = receipt_file(till, "r1")
    assert check_receipt(receipt, Given(book=parse_price_book(book_text, "b"))).verified
    other = parse_price_book(book_text.replace('source = "', 'source = "not '), "b")
    assert failed(check_receipt(receipt, Given(book=other))) == {"prices": "entry.price"}


def test_a_receipt_is_found_by_the_clients_own_name_if_that_is_one_requests(
    till: Till, usage_event: Events
) -> None:
    till.record(
        usage_event("r1", client_request_id="mine"),
        usage_event("r2", client_request_id="twice"),
        usage_event("r3", client_request_id="twice"),
        usage_event("twice-not", client_request_id="x"),
    )

    def draft(*arguments: str) -> str:
        made = till.store.read(lambda c: draft_of(c, *arguments))
        return str(made["event"]["request_id"])

    assert draft("mine", "", "") == "r1"
    assert draft("r3", "acme", "") == "r3"
    with pytest.raises(ReceiptAmbiguousError, match="2 requests"):
        draft("twice", "", "")
    for arguments in (("r1", "beta", ""), ("nobody", "", ""), ("r1", "acme", "search")):
        with pytest.raises(EventUnknownError):
            draft(*arguments)


@pytest.mark.parametrize(
    ("raw", "where"),
    [
        (b"", "byte 1"),
        (b"\xff", "byte 1"),
        (b"[]\n", "byte 1"),
        (b"{}\n", "receipt"),
        (b'{"a":1,"a":1}\n', "a"),
        (b'{"b":1,"a":1}\n', "b, a"),
        (b'{"a":1.5}\n', ""),
        (b'{"a":NaN}\n', ""),
        (b"[" * 100_000, ""),
        (b'{"receipt":{"format":9},"signature":""}\n', "format"),
        (b"x" * ((4 << 20) + 1), ""),
    ],
)
def test_what_is_no_receipt_is_said_to_be_none(raw: bytes, where: str) -> None:
    report = check_receipt(raw)
    assert failed(report)["form"] == where
    assert not report.verified


@pytest.mark.parametrize("change", [b" ", b"\n", b"\r\n"])
def test_a_space_more_is_found(till: Till, usage_event: Events, change: bytes) -> None:
    till.record(usage_event("r1"))
    raw = receipt_file(till, "r1")
    for at in (0, 20, len(raw)):
        report = check_receipt(raw[:at] + change + raw[at:])
        assert failed(report)["form"].startswith("byte ")
    assert failed(check_receipt(raw[:-1]))["form"] == f"byte {len(raw):,}"
