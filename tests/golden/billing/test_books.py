"""The example books, to the last digit: requests whose amount is worked out by hand beside them
(`book_requests.toml`), an invoice for each version, and what storage costs.

The files pin what these shapes of prices mean. They change only on purpose, by running this file as
a program, and a reviewer reads the difference.
"""

import json
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from billing.attestation import Attestation
from billing.attestation_keeping import AttestationSubmission
from billing.invoice import invoice_of
from billing.ledger import Ledger
from billing.ledger_sqlite import SqliteStore
from billing.ledger_verify import verify_ledger
from billing.meter import RecordStatus, Submission
from billing.metrics import BillingMetrics
from billing.money import round_fraction, to_text
from billing.period import HOUR_NS, Period
from billing.price_book import PriceBook, version_from_text
from billing.price_book_file import load_price_book
from billing.quote import quote
from billing.rating import Facts
from billing.statement import invoice_data
from billing.storage import StorageSpan, storage_charges
from billing.usage import EndReason, TenantId, TokenCounts, UsageEvent
from billing.wire import invoice_message
from billing.wire_attestation import attestation_submission_of
from cache_service.attest.wire import attestation_message
from cache_service.attest.witness import Identity
from cache_service.metering.meter import Sort, StorageMeter
from cache_service.metering.witness import storage_use
from kvtier.blocks import Tier

HERE = Path(__file__).parent / "books"
BOOKS = Path(__file__).parents[3] / "billing" / "books"
NAMES = sorted(path.stem for path in BOOKS.glob("*.toml"))


@dataclass(frozen=True)
class Request:
    """Its amount is the sum of `parts`: (quantity, price), each price of `per`."""

    book: str
    what: str
    at: str
    model: str
    tokens: dict[str, Any]
    parts: list[list[Any]]
    service_class: str = ""
    per: int = 1_000_000

    @property
    def counts(self) -> TokenCounts:
        t = {"hit": 0, "miss": 0, "output": 0, "write": 0, "ttl": ""} | self.tokens
        prompt = t["hit"] + t["miss"]
        return TokenCounts(
            prompt, t["hit"], 0, t["hit"], 0, 0, t["miss"], t["output"], t["write"], t["ttl"]
        )

    @property
    def time_ns(self) -> int:
        return int(datetime.fromisoformat(self.at).timestamp()) * 10**9

    @property
    def by_hand(self) -> Decimal:
        exact = sum(Decimal(quantity) * Decimal(price) for quantity, price in self.parts)
        return Decimal(exact) / self.per


REQUESTS = [
    Request(**fields)
    for fields in tomllib.loads((HERE.parent / "book_requests.toml").read_text())["request"]
]

# (minutes after the version's start, minutes it was kept, tokens)
SPANS = [(10, 20, 100_000), (25, 10, 50_000), (100, 61, 100_000), (170, 1, 33_333), (300, 0, 7)]


def _book(name: str) -> PriceBook:
    return load_price_book(BOOKS / f"{name}.toml")


def _requests(name: str) -> list[dict[str, str]]:
    book, found = _book(name), []
    for request in REQUESTS:
        if request.book == name:
            facts = Facts(request.model, request.counts, request.time_ns, request.service_class)
            said = quote(book, facts)
            assert said.amount == request.by_hand, request.what
            amount, saved = to_text(said.amount), to_text(said.saved)
            found.append(
                {
                    "what": request.what,
                    "amount": amount,
                    "saved": saved,
                    "currency": said.currency,
                    "version": said.price_version,
                }
            )
    return found


def _events(name: str, start: int, end: int) -> Iterator[UsageEvent]:
    """Ninety of a version's first month, about one in seven hours, of every kind of request."""
    kinds = [request for request in REQUESTS if request.book == name]
    for number in range(90):
        kind = kinds[number % len(kinds)]
        at = start + number * 7 * HOUR_NS + number * 1_234_567_891
        if at >= end:
            return
        yield UsageEvent(
            request_id=f"{name}-{start}-{number:03}",
            schema_version=1,
            tenant_id=TenantId("acme"),
            model=kind.model,
            start_time_ns=at - 10**9,
            end_time_ns=at,
            end_reason=EndReason.STOP,
            tokens=kind.counts,
            node="node-1",
            client_request_id="",
            ttft_ns=None,
        )


def _invoices(name: str) -> list[dict[str, Any]]:
    book = _book(name)
    ends = [version.effective_time_ns for version in book.versions[1:]]
    last = book.versions[-1].effective_time_ns + 30 * 24 * HOUR_NS
    periods = [
        Period(version.effective_time_ns, end)
        for version, end in zip(book.versions, [*ends, last], strict=True)
    ]
    with tempfile.TemporaryDirectory() as directory:
        store = SqliteStore(Path(directory))
        ledger = Ledger(store, book, lambda: last, BillingMetrics())
        for period in periods:
            events = _events(name, period.start_ns or 0, period.end_ns or 0)
            ledger.record([Submission(event, b"") for event in events]).result(30)
        found = [
            store.read(lambda c, p=period: invoice_message(invoice_of(c, TenantId("acme"), p)))
            for period in periods
        ]
        ledger.close()
        store.close()
    return [invoice_data(message) for message in found]


def _storage(name: str) -> list[dict[str, str]]:
    book, found = _book(name), []
    for version in book.versions:
        start = version.effective_time_ns
        models = sorted({r.model for r in REQUESTS if r.book == name} | {"started-hour"})
        spans = [
            StorageSpan(
                model, tokens, start + after * HOUR_NS // 60, start + (after + kept) * HOUR_NS // 60
            )
            for model in models
            for after, kept, tokens in SPANS
        ]
        found += [
            {
                "model": charge.model,
                "version": charge.version.name,
                "meter": charge.rate.meter.value,
                "token_hours": str(charge.token_hours),
                "amount": format(
                    round_fraction(charge.amount, charge.version.invoice_decimals), "f"
                ),
            }
            for charge in storage_charges(spans, book, start, start + 24 * HOUR_NS)
        ]
    return found


def _golden(name: str) -> dict[str, Any]:
    return {
        "versions": {version.name: version.id for version in _book(name).versions},
        "requests": _requests(name),
        "invoices": _invoices(name),
        "storage": _storage(name),
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_book_means_the_same_for_ever(name: str) -> None:
    golden = json.loads((HERE / f"{name}.json").read_text())
    assert _golden(name) == golden
    for invoice in golden["invoices"]:
        total = sum(Decimal(line["amount"]) for line in invoice["lines"])
        assert total == Decimal(invoice["total"])
        assert invoice["request_count"] > invoice["unrated_request_count"]


@pytest.mark.parametrize("name", NAMES)
def test_a_book_says_that_it_is_an_example_and_since_when(name: str) -> None:
    text = (BOOKS / f"{name}.toml").read_text()
    assert text.startswith("# EXAMPLE of a shape, not your prices")
    for version in _book(name).versions:
        assert version.source.startswith("EXAMPLE: ")
        assert any(year in version.source for year in ("2024", "2025", "2026"))
        assert version_from_text(version.text) == version


def test_there_is_a_request_for_every_book_and_every_price() -> None:
    for name in NAMES:
        for version in _book(name).versions:
            models = {r.model for r in REQUESTS if r.book == name} | {"started-hour"}
            unused = [card for card in version.cards if not any(map(card.fits, models))]
            assert unused == [], name


def test_token_hours_are_what_hours_of_a_clock_and_of_a_cache_make_of_them() -> None:
    charged = {
        (each["model"], each["meter"]): Fraction(each["token_hours"]) for each in _storage("baidu")
    }
    # Minutes 10-30 and 25-35 overlap: 150,000. 100-161 lies in the hours 1 and 2, as does 170-171.
    assert charged["deepseek-v3.1-250821", "hourly_maximum"] == 150_000 + 100_000 + 100_000
    assert charged["started-hour", "started_hour"] == 100_000 + 50_000 + 2 * 100_000 + 33_333
    kept = sum(minutes * tokens for _, minutes, tokens in SPANS)
    (gemini, *_) = _storage("gemini")
    assert Fraction(gemini["token_hours"]) == Fraction(kept, 60)


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    for book_name in NAMES:
        text = json.dumps(_golden(book_name), indent=1) + "\n"
        (HERE / f"{book_name}.json").write_text(text)


@pytest.mark.parametrize(("name", "per_hour"), [("gemini", False), ("baidu", True)])
def test_what_the_storage_meter_says_is_invoiced_as_the_spans_cost(
    name: str, per_hour: bool, tmp_path: Path
) -> None:
    """The spans of `storage`, block by block through a cache service's meter and the ledger."""
    golden = json.loads((HERE / f"{name}.json").read_text())["storage"]
    assert golden
    book = _book(name)
    store = SqliteStore(tmp_path)
    ledger = Ledger(store, book, lambda: book.versions[-1].effective_time_ns, BillingMetrics())
    found = []
    for version in book.versions:
        start = version.effective_time_ns
        models = [each["model"] for each in golden if each["version"] == version.name]
        said = _attested(models, start)
        outcomes = ledger.attest([AttestationSubmission(each, b"") for each in said]).result(30)
        assert {each.status for each in outcomes} == {RecordStatus.ACCEPTED}
        period = Period(start, start + 24 * HOUR_NS)
        invoice = store.read(lambda c, p=period: invoice_of(c, TenantId("acme"), p))
        for line in invoice.lines:
            assert (line.token_class, line.price_version) == ("storage", version.name)
            token_hours = Fraction(line.quantity_tokens, 10**6)
            found.append((line.model, version.name, token_hours, format(line.amount, "f")))
    assert store.read(lambda c: verify_ledger(c, ledger.head)).problem == ""
    ledger.close()
    store.close()
    wanted = [
        (each["model"], each["version"], Fraction(each["token_hours"]), each["amount"])
        for each in golden
    ]
    assert len(found) == len(wanted)
    for (model, version_name, hours, amount), want in zip(
        sorted(found), sorted(wanted), strict=True
    ):
        assert (model, version_name, amount) == (want[0], want[1], want[3])
        # Exact seconds lose less than a millionth of a token-hour an attestation.
        assert 0 <= want[2] - hours <= (0 if per_hour else Fraction(24, 10**6))


def _attested(models: list[str], start: int) -> list[Attestation]:
    now = [start]
    meter = StorageMeter(lambda: now[0])
    moments = []
    for at, (after, kept, tokens) in enumerate(SPANS):
        if kept:
            begin = start + after * HOUR_NS // 60
            moments += [(begin, 1, at, tokens), (begin + kept * HOUR_NS // 60, 0, at, tokens)]
    phases: dict[tuple[int, str], int] = {}
    for moment, comes, at, tokens in sorted(moments):
        now[0] = moment
        for model in models:
            sort = Sort("acme", model, Tier.HOST)
            if comes:
                phases[at, model] = meter.came(sort, tokens)
            else:
                meter.left(sort, {phases[at, model]: tokens})
    now[0] = start + 24 * HOUR_NS
    identity = Identity("node-1", f"run-{start}")
    return [
        attestation_submission_of(attestation_message(storage_use(identity, each))).said
        for each in meter.close()
    ]
