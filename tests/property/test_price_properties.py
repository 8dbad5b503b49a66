"""Any cards, windows, terms and events: nothing is lost, doubled or rounded on the way."""

from collections import Counter
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from billing.errors import PriceBookError, TermsError
from billing.invoice import invoice_of
from billing.ledger_schema import entries, postings
from billing.ledger_verify import verify_ledger
from billing.line import LineKey
from billing.meter import posting_rows
from billing.period import HOUR_NS, Period
from billing.price_book import PriceBook, PriceVersion, version_from_text
from billing.price_book_file import parse_price_book
from billing.price_card import Selection, StorageMeter, StorageRate
from billing.quote import quote
from billing.rating import Facts, facts_of, rate, rated_lines, selections
from billing.report import UsageQuery, usage_rows
from billing.settlement import AdjustmentKind, CreditState, UsageCharge, settle
from billing.storage import StorageSpan, storage_charges
from billing.terms import Allowance, Credit, Discount, Terms
from billing.terms_file import parse_terms
from billing.usage import TokenCounts, UsageEvent, event_from_text
from tests.property.priced import NOW, cards, factors, money, token_counts, versions
from tests.property.test_billing_properties import event_sets, record, rows_of, till

BOOKS = sorted((Path(__file__).parents[2] / "billing" / "books").glob("*.toml"))


@given(versions())
@settings(max_examples=150, deadline=None)
def test_a_stored_version_is_the_same_version(version: PriceVersion) -> None:
    stored = version_from_text(version.text)
    assert stored == version
    assert stored.text == version.text


@given(versions(), token_counts(), st.integers(0, NOW), st.sampled_from(["", "batch"]))
@settings(max_examples=300, deadline=None)
def test_every_token_of_a_prompt_is_charged_once(
    version: PriceVersion, tokens: TokenCounts, time_ns: int, service_class: str
) -> None:
    version = replace(
        version, rate_cards=tuple(replace(c, round_up_tokens=1) for c in version.rate_cards)
    )
    lines = rated_lines(Facts("m1", tokens, time_ns, service_class), version)
    card = version.card_of("m1")
    assert card is not None
    charged = Counter[str]()
    for line in lines:
        assert line.quantity > 0
        charged["hit" if line.key.of_hits else line.key.meter] += line.quantity
    on_top = card.cache_write_mode.value == "on_top"
    assert charged["hit"] + charged["miss"] + (not on_top and charged["cache_write"]) == (
        tokens.prompt
    )
    assert charged["output"] == tokens.output
    assert charged["hit"] <= tokens.hit
    assert charged["hit"] % card.hits.step_tokens == 0
    assert charged["cache_write"] <= tokens.cache_write
    assert charged["request"] == int(
        "request" in dict(card.base.rates) and bool(tokens.prompt or tokens.output)
    )


@given(cards(), st.integers(-1, 0), st.integers(-1, 0))
@settings(max_examples=150, deadline=None)
def test_layers_multiply_exactly(card: Any, window: int, promotion: int) -> None:
    selection = Selection(
        -1, window if card.windows else -1, -1, promotion if card.promotions else -1
    )
    got = card.rates(selection)
    expected: dict[str, Any] = {}
    times = Fraction(1)
    for _, change in card.layers(selection):
        for meter, said in change.rates:
            if said.price is None and not said.of:
                kind, value = expected[meter]
                expected[meter] = (kind, value * Fraction(said.times))
            elif said.price is None:
                expected[meter] = (said.of, Fraction(said.times))
            else:
                expected[meter] = ("", Fraction(said.price))
        times *= Fraction(change.times)
    for meter, (of, value) in expected.items():
        base = expected[of][1] if of else 1
        assert Fraction(got[meter]) == value * base * times


@given(st.lists(versions(), min_size=1, max_size=2), event_sets(), st.data())
@settings(max_examples=40, deadline=None)
def test_the_money_adds_up_however_it_is_asked(
    drawn: list[PriceVersion], batch: list[UsageEvent], data: st.DataObject
) -> None:
    starts = sorted(
        data.draw(st.sets(st.integers(0, NOW), min_size=len(drawn), max_size=len(drawn)))
    )
    book = PriceBook(
        tuple(
            replace(version, name=f"v{start}", effective_time_ns=start)
            for version, start in zip(drawn, starts, strict=True)
        )
    )
    with till(book) as (store, ledger):
        record(ledger, batch)
        lines = rows_of(store, postings, postings.c.position, postings.c.line)
        assert sum(Fraction(line["amount"]) for line in lines) == 0
        for tenant in {event.tenant_id for event in batch}:
            mine = [line for line in lines if line["account"] == f"receivable/{tenant}"]
            owed = sum(Fraction(line["amount"]) for line in mine)
            report = store.read(lambda c, t=tenant: usage_rows(c, UsageQuery(tenant_id=t)))
            assert sum(Fraction(row.amount) for row in report) == owed
            invoice = store.read(lambda c, t=tenant: invoice_of(c, t, Period()))
            assert invoice.total == sum(Fraction(line.amount) for line in invoice.lines)
            exact = sum(
                Fraction(x.quantity_tokens) * Fraction(x.unit_price) / x.unit_tokens
                for x in invoice.lines
            )
            assert exact == owed
            said = sum(
                Fraction(quote(book, facts_of(e)).amount) for e in batch if e.tenant_id == tenant
            )
            assert said == owed
        for row, event in zip(rows_of(store, entries, entries.c.position), batch, strict=True):
            version = book.version_for(event.end_time_ns or 0, event.model)
            again = version_from_text(version.text) if version else None
            replayed = rate(event_from_text(row["event"]), again)
            stored = [line for line in lines if line["position"] == row["position"]]
            assert posting_rows(row["position"], replayed) == stored
        assert store.read(lambda c: verify_ledger(c, ledger.head)).problem == ""


@given(versions(), st.lists(token_counts(), min_size=1, max_size=6), st.integers(0, NOW))
@settings(max_examples=100, deadline=None)
def test_quantities_of_a_key_may_be_added_up_before_they_are_priced(
    version: PriceVersion, requests: list[TokenCounts], time_ns: int
) -> None:
    quantities = Counter[LineKey]()
    total = Fraction(0)
    for tokens in requests:
        for line in rated_lines(Facts("m1", tokens, time_ns), version):
            quantities[line.key] += line.quantity
            total += Fraction(line.amount)
    assert sum(Fraction(key.amount(count)) for key, count in quantities.items()) == total


@given(versions(), token_counts(), st.integers(0, NOW))
@settings(max_examples=100, deadline=None)
def test_bands_cover_a_prompt_without_gaps(
    version: PriceVersion, tokens: TokenCounts, time_ns: int
) -> None:
    card = version.card_of("m1")
    assert card is not None
    bands = selections(Facts("m1", tokens, time_ns), version, card)
    limits = [limit for limit, _ in bands]
    assert limits[0] == 0
    assert limits == sorted(limits)
    assert limits[-1] == 0 or limits[-1] < tokens.prompt


NAMES = st.sampled_from(["m1", "m2"])
METERS = st.sampled_from(["hit", "miss", "output"])
usage = st.lists(
    st.builds(
        lambda model, meter, price, count: UsageCharge(
            model, LineKey(meter, "", price, 1000, price), count
        ),
        NAMES,
        METERS,
        money,
        st.integers(0, 10**6),
    ),
    max_size=6,
)
PATTERNS = st.sampled_from(["*", "m1"])
SOME = st.lists(METERS, min_size=1, max_size=2, unique=True).map(tuple)


@st.composite
def terms(draw: st.DrawFn) -> Terms:
    return Terms(
        "t",
        "*",
        0,
        "CNY",
        draw(st.integers(0, 9)),
        draw(st.just(Decimal(0)) | money),
        tuple(
            Allowance(f"a{i}", draw(PATTERNS), draw(SOME), draw(st.integers(1, 10**6)))
            for i in range(draw(st.integers(0, 2)))
        ),
        tuple(
            Discount(f"d{i}", draw(PATTERNS), draw(st.just(()) | SOME), draw(factors) / 100)
            for i in range(draw(st.integers(0, 2)))
        ),
        tuple(
            Credit(f"c{i}", draw(money), 0, draw(st.integers(1, 9)))
            for i in range(draw(st.integers(0, 2)))
        ),
    )


@given(usage, terms(), st.integers(0, 9), st.data())
@settings(max_examples=200, deadline=None)
def test_a_settlement_adds_up_and_pays_nobody(
    charges: list[UsageCharge], drawn: Terms, decimals: int, data: st.DataObject
) -> None:
    listed = sum((round(each.key.amount(each.quantity), decimals) for each in charges), Decimal(0))
    states = [CreditState(credit, credit.amount) for credit in drawn.credits]
    found = settle(charges, [], listed, drawn, states)
    total = listed + sum(each.amount for each in found.adjustments)
    assert total >= 0
    used = {
        each.name: -each.amount for each in found.adjustments if each.kind is AdjustmentKind.CREDIT
    }
    for state in found.credits:
        assert state.left == state.credit.amount - used.get(state.credit.name, 0) >= 0
    if total < drawn.minimum_charge:
        assert sum(used.values()) >= drawn.minimum_charge - total
    shuffled = data.draw(st.permutations(charges))
    assert settle(shuffled, [], listed, drawn, states) == found


spans = st.lists(
    st.builds(
        lambda start, kept, tokens: StorageSpan("m1", tokens, start, start + kept),
        st.integers(0, 50 * HOUR_NS),
        st.integers(0, 30 * HOUR_NS),
        st.integers(0, 10**6),
    ),
    max_size=6,
)


@given(spans, st.sampled_from(StorageMeter), money, st.integers(0, 90 * HOUR_NS), cards())
@settings(max_examples=150, deadline=None)
def test_storage_of_parts_of_a_time_is_that_of_the_whole(
    kept: list[StorageSpan], meter: StorageMeter, price: Decimal, cut: int, card: Any
) -> None:
    card = replace(card, storage=StorageRate(price, meter))
    version = PriceVersion("v", 0, "CNY", "s", 6, rate_cards=(card,))
    book = PriceBook((version,))

    def token_ns(start: int, end: int) -> int:
        return sum(each.token_ns for each in storage_charges(kept, book, start, end))

    whole = token_ns(0, 100 * HOUR_NS)
    assert token_ns(0, cut) + token_ns(cut, 100 * HOUR_NS) == whole
    exact = sum(each.tokens * (each.end_ns - each.start_ns) for each in kept)
    assert whole == exact if meter is StorageMeter.EXACT_SECONDS else whole >= 0
    if meter is StorageMeter.STARTED_HOUR:
        assert whole >= exact


VALUES = st.sampled_from(
    [
        '"0.1"',
        '"x"',
        "1",
        "0.5",
        "true",
        "[]",
        "{}",
        '{ times = "0.5" }',
        "2025-01-01",
        '{ times = "0.5", of = "miss" }',
        "2025-01-01T00:00:00Z",
        '["mon"]',
        '["09:00-12:00"]',
        '""',
        '{ price = "1", meter = "exact_seconds" }',
        "[[1]]",
        '{ "1h" = "1" }',
        '"a" # b',
        "'''\n'''",
    ]
)
KEYS = st.sampled_from(
    [
        "name",
        "effective_time",
        "currency",
        "source",
        "invoice_decimals",
        "model",
        "per",
        "hit",
        "miss",
        "output",
        "request",
        "hit_ssd",
        "cache_write",
        "cache_write_mode",
        "times",
        "window",
        "class",
        "from",
        "until",
        "prompt_above",
        "output_above",
        "days",
        "hours",
        "calendar",
        "zone",
        "holidays",
        "workdays",
        "storage",
        "quota",
        "steps_apply",
        "steps",
        "windows",
        "prices",
        "round_up_tokens",
        "hit_step_tokens",
        "format",
        "tenant",
        "quantity",
        "meters",
        "amount",
    ]
)
HEADERS = st.sampled_from(
    [
        "[[versions]]",
        "[[versions.prices]]",
        "[[versions.windows]]",
        "[[versions.calendars]]",
        "[[versions.prices.steps]]",
        "[[versions.prices.windows]]",
        "[[versions.prices.classes]]",
        "[[versions.prices.promotions]]",
        "[versions]",
        "[[terms]]",
        "[[terms.credits]]",
        "[[terms.discounts]]",
        "[[terms.allowances]]",
        "[a.b]",
        "[[prices]]",
    ]
)
LINES = st.lists(
    st.one_of(HEADERS, st.builds(lambda key, value: f"{key} = {value}", KEYS, VALUES)), max_size=30
)


@given(LINES)
@example(["[[versions]]", "effective_time = 2025-01-01T00:00:00Z", "[[versions.calendars]]"])
@settings(max_examples=400, deadline=None)
def test_no_tables_and_keys_make_the_readers_stumble(lines: list[str]) -> None:
    text = "\n".join(lines)
    for number in (1, 2):
        with suppress(PriceBookError):
            assert parse_price_book(f"format = {number}\n{text}", "b").versions
    with suppress(TermsError):
        assert parse_terms(f"format = 1\n{text}", "t").terms


@given(st.sampled_from(BOOKS), st.data())
@settings(max_examples=200, deadline=None)
def test_a_book_with_a_line_changed_is_read_or_refused(path: Path, data: st.DataObject) -> None:
    lines = path.read_text().splitlines()
    place = data.draw(st.integers(0, len(lines) - 1))
    change = data.draw(st.sampled_from(["drop", "twice", "value", "text"]))
    key = lines[place].partition("=")[0]
    lines[place : place + 1] = {
        "drop": [],
        "twice": [lines[place]] * 2,
        "value": [f"{key}= {data.draw(VALUES)}"],
        "text": [data.draw(st.text(max_size=20))],
    }[change]
    with suppress(PriceBookError):
        for version in parse_price_book("\n".join(lines), "b").versions:
            assert version_from_text(version.text) == version
