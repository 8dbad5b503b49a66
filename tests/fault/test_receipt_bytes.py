"""Every byte of a receipt: one that is changed is found, and so is where it is."""

import random
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest

from billing.correction import CorrectionAsk, CorrectionKind
from billing.ledger import Ledger
from billing.ledger_key import KeyFile
from billing.ledger_signer import LedgerSigner
from billing.ledger_sqlite import SqliteStore
from billing.metrics import BillingMetrics
from billing.price_book_file import parse_price_book
from billing.receipt_check import Report, Result, check_receipt
from billing.usage import EndReason, StorageUse, TenantId, TokenCounts, UsageEvent
from tests.receipts import parts_at, proven, receipt_file, salt_of

NEAR_BYTES = 100
"""Where a file stops being JSON may be a little behind the byte that was changed."""

BOOKS = Path(__file__).parents[2] / "billing/books"
NOW = 1_800_000_000_000_000_000


class Till:
    def __init__(self, directory: Path) -> None:
        self.store = SqliteStore(directory)
        book = parse_price_book((BOOKS / "anthropic.toml").read_text(), "book")
        self.clock = type("Clock", (), {"now_ns": NOW})
        signer = LedgerSigner(self.store.ledger_id, KeyFile(directory))
        self.ledger = Ledger(self.store, book, lambda: NOW, BillingMetrics(), signer)

    def record(self, *events: UsageEvent) -> None:
        from billing.meter import Submission

        self.ledger.record([Submission(event, b"") for event in events]).result(30)


def event() -> UsageEvent:
    tokens = TokenCounts(0, 0, 0, 0, 0, 0, 0, 17, cache_write=64, cache_write_ttl_class="1h")
    return UsageEvent(
        request_id="r-1",
        schema_version=1,
        tenant_id=TenantId("acme"),
        model="claude-sonnet-4-5-x",
        start_time_ns=NOW - 10**9,
        end_time_ns=NOW,
        end_reason=EndReason.STOP,
        tokens=tokens,
        node="node-1",
        client_request_id='"quoted" \\ ü',
        ttft_ns=5,
        project_id="search",
        user_id="",
        lease_ids=("l1", "l2"),
        storage=StorageUse(host=7),
    )


@pytest.fixture(scope="module")
def receipt(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    till = Till(tmp_path_factory.mktemp("ledger"))
    try:
        made, _ = proven(event(), [("gpu", 20), ("ssd", 4), ("computed", 2)], tail=9, every=9)
        till.record(made)
        till.ledger.rotate_key().result(30)
        ask = CorrectionAsk("c1", CorrectionKind.CREDIT, "r-1", "sorry", "ann", Decimal("0.00001"))
        till.ledger.correct(ask).result(30)
        raw = receipt_file(till, "r-1", salt_of(made))
    finally:
        till.ledger.close()
        till.store.close()
    assert check_receipt(raw).verified
    assert len(check_receipt(raw).receipt["lines"]) > 2  # type: ignore[index]
    return raw


FINE = ("form", "signature", "opening")
"""Checks that say where a byte was changed; others say what does not follow from it."""


def places(report: Report) -> list[str]:
    return [
        place
        for found in report.findings
        if found.result is Result.FAILED and found.check in FINE
        for place in found.where.split(", ")
    ]


def located(at: int, part: str, found: list[str]) -> bool:
    """Whether a place that was found is the byte's, or that of the part which it is in."""
    part = part.removeprefix("receipt").removeprefix(".") or "receipt"
    # A mark is of the part that it names.
    part = part.removeprefix("marks.") or part
    for place in found:
        if re.fullmatch(r"byte [0-9,]+", place):
            if abs(int(place[5:].replace(",", "")) - 1 - at) <= NEAR_BYTES:
                return True
        elif place and (part.startswith(place) or place.startswith(part) or renamed(part, place)):
            return True
    return False


def renamed(part: str, place: str) -> bool:
    """A key of which one letter is another is found by the name that it has now."""
    names = (part, part.rpartition(".")[2])
    return any(len(n) == len(place) and sum(map(str.__ne__, n, place)) <= 1 for n in names)


def every_change(receipt: bytes, changed: Callable[[int], int]) -> None:
    parts = parts_at(receipt[:-1])
    missed = []
    for at, byte in enumerate(receipt):
        new = changed(byte)
        if new == byte:
            continue
        report = check_receipt(receipt[:at] + bytes([new]) + receipt[at + 1 :])
        part = parts[at] if at < len(parts) else ""
        if report.verified or not located(at, part, places(report)):
            missed.append((at, part, bytes([byte, new]), places(report)))
    assert not missed, f"{len(missed)} of {len(receipt)}: {missed[:5]}"


def test_every_byte_that_is_another_is_found_and_located(receipt: bytes) -> None:
    every_change(receipt, lambda byte: byte ^ 1)


def test_every_letter_in_the_other_case_is_found_and_located(receipt: bytes) -> None:
    every_change(receipt, lambda byte: byte ^ 0x20 if chr(byte).isalpha() else byte)


def test_every_digit_that_is_another_is_found_and_located(receipt: bytes) -> None:
    every_change(receipt, lambda byte: ord("7") if chr(byte).isdigit() else byte)


def test_bytes_that_are_gone_or_there_twice_are_found(receipt: bytes) -> None:
    for at in range(0, len(receipt), 7):
        assert not check_receipt(receipt[:at] + receipt[at + 1 :]).verified
        assert not check_receipt(receipt[:at] + receipt[at : at + 1] + receipt[at:]).verified
    for at in range(0, len(receipt), 97):
        assert not check_receipt(receipt[:at]).verified


def test_random_bytes_in_random_places_break_no_check(receipt: bytes) -> None:
    rng = random.Random(7)
    for _ in range(500):
        raw = bytearray(receipt)
        for _ in range(rng.randint(1, 4)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        if bytes(raw) != receipt:
            assert not check_receipt(bytes(raw)).verified
