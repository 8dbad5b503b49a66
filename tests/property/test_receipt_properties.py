"""Receipts of random requests, under every shape of prices: each holds from its bytes alone, says
what the ledger has, and is of its own tokens and no others.
"""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing.ledger import Ledger
from billing.ledger_key import KeyFile
from billing.ledger_lookup import found_entries
from billing.ledger_signer import LedgerSigner
from billing.ledger_sqlite import SqliteStore
from billing.meter import RecordStatus, Submission
from billing.metrics import BillingMetrics
from billing.money import to_text
from billing.price_book_file import parse_price_book
from billing.receipt_check import Given, Result, check_receipt
from billing.usage import EndReason, TenantId, TokenCounts, UsageEvent
from tests.receipts import proven, receipt_file, salt_of

BOOKS = sorted((Path(__file__).parents[2] / "billing/books").glob("*.toml"))
NOW = 1_800_000_000_000_000_000

ENDS = [each for each in EndReason if each is not EndReason.WORKER_LOST]


class Till:
    def __init__(self, book: Path, directory: Path) -> None:
        self.store = SqliteStore(directory)
        self.clock = type("Clock", (), {"now_ns": NOW})
        signer = LedgerSigner(self.store.ledger_id, KeyFile(directory))
        parsed = parse_price_book(book.read_text(), book.name)
        self.ledger = Ledger(self.store, parsed, lambda: NOW, BillingMetrics(), signer)
        self.count = 0
        patterns = [card.model_pattern for each in parsed.versions for card in each.cards]
        self.models = ["nobodys", *(p.replace("*", "-x").replace("?", "y") for p in patterns)]


@pytest.fixture(params=BOOKS, ids=lambda path: path.stem, scope="module")
def till(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = Till(request.param, tmp_path_factory.mktemp("ledger"))
    yield made
    made.ledger.close()
    made.store.close()


LETTERS = st.characters(codec="utf-8", categories=["L", "N"])
NAMES = st.one_of(st.none(), st.text(LETTERS, max_size=5))
PLACES = st.sampled_from(["gpu", "host", "ssd", "shared", "computed"])


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_every_receipt_holds_and_is_of_its_own_tokens(till: Any, data: st.DataObject) -> None:
    till.count += 1
    runs = data.draw(st.lists(st.tuples(PLACES, st.integers(1, 40)), min_size=1, max_size=6))
    tail = data.draw(st.integers(0, 63)) if runs[-1][0] == "computed" else 0
    written = data.draw(st.booleans())
    output = data.draw(st.integers(0, 3_000))
    tokens = TokenCounts(0, 0, 0, 0, 0, 0, 0, output)
    if written and output > 64:
        ttl = data.draw(st.sampled_from(["", "5m", "1h"]))
        tokens = TokenCounts(0, 0, 0, 0, 0, 0, 0, output, 64, ttl)
    end_time = NOW - data.draw(st.integers(0, 90 * 86_400 * 10**9))
    event = UsageEvent(
        request_id=f"r{till.count}",
        schema_version=1,
        tenant_id=TenantId("acme"),
        model=data.draw(st.sampled_from(till.models)),
        start_time_ns=end_time - 5,
        end_time_ns=end_time,
        end_reason=data.draw(st.sampled_from(ENDS)),
        tokens=tokens,
        node="node",
        client_request_id=data.draw(st.text(max_size=5)),
        ttft_ns=data.draw(st.one_of(st.none(), st.integers(0, 10**9))),
        project_id=data.draw(NAMES),
        user_id=data.draw(NAMES),
        service_class=data.draw(st.sampled_from([None, "", "batch"])),
    )
    event, prompt = proven(event, runs, tail, every=data.draw(st.integers(0, 3)))
    (outcome,) = till.ledger.record([Submission(event, b"")]).result(30)
    assert outcome.status is RecordStatus.ACCEPTED

    raw = receipt_file(till, event.request_id, salt_of(event))
    key = till.ledger.keys[-1].public_key
    report = check_receipt(raw, Given(key, prompt))
    assert {f.check: f for f in report.findings if f.result is not Result.HOLDS} == {}
    (found,) = till.store.read(lambda c: found_entries(c, event.request_id))
    assert report.receipt is not None
    said = (report.receipt["amount"], report.receipt["entry"]["position"])
    assert said == (to_text(found.amount), found.position)
    assert len(report.receipt["lines"]) == len(found.lines)

    place = data.draw(st.integers(0, len(prompt) - 1))
    prompt[place] ^= 1
    other = check_receipt(raw, Given(key, prompt))
    (broken,) = [f for f in other.findings if f.result is Result.FAILED]
    assert broken.check == "tokens"
    numbers = [int(n.replace(",", "")) for n in broken.where.split() if n[0].isdigit()]
    assert numbers[0] <= place // 64 <= numbers[-1]
