"""The invoice's page: the same figures as every other format, and nothing from elsewhere."""

import re
from html.parser import HTMLParser
from typing import Any

from billing.invoice_page import invoice_page

VOID = {"meta", "line", "rect", "br"}


class Page(HTMLParser):
    """Text, attributes and whether every element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.bars: list[dict[str, str]] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.feed(html)
        self.close()
        assert self.open == []

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        found = {name: value or "" for name, value in attrs}
        if tag == "rect" and "height" in found and found["height"] != "1":
            self.bars.append(found)
        self.links += [found[name] for name in ("src", "href") if name in found]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)


def line(model: str, token_class: str, amount: str, **more: Any) -> dict[str, Any]:
    return {
        "model": model,
        "token_class": token_class,
        "cache_write_ttl_class": "",
        "quantity_tokens": 1_234_567,
        "unit_price": "0.1",
        "unit_tokens": 1_000_000,
        "amount": amount,
        "price_book_version": "2026-11",
        "rule": "",
    } | more


def invoice(*lines: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "tenant": "acme",
        "period": {"start": "2026-11-01T00:00:00Z", "end": "2026-12-01T00:00:00Z"},
        "currency": "CNY",
        "total": "0.123457",
        "saved": "1.11",
        "net_saved": "1.11",
        "request_count": 1200,
        "unrated_request_count": 0,
        "cache_writes": {},
        "lines": list(lines),
        "terms": "",
        "terms_hash": "",
        "adjustments": [],
        "credits": [],
        "corrections": [],
    } | more


def day(name: str, hit: int, miss: int, output: int) -> dict[str, Any]:
    return {"day": name, "hit_tokens": hit, "miss_tokens": miss, "output_tokens": output}


def test_every_figure_is_there_as_the_other_formats_have_it() -> None:
    data = invoice(
        line("large", "hit", "0.1234567890123"),
        line("large", "cache_write", "1234.5", cache_write_ttl_class="1h", rule="night: half"),
        adjustments=[{"kind": "discount", "name": "early", "quantity": 0, "amount": "-0.5"}],
        credits=[{"name": "welcome", "left": "12.25", "expires": "2027-01-01T00:00:00Z"}],
        corrections=[{"request_id": "r-17", "kind": "credit", "amount": "-2", "reason": "outage"}],
        cache_writes={"": 64, "1h": 1280},
        terms="acme 7",
        terms_hash="abcdef0123456789",
    )
    page = Page(invoice_page(data, [day("2026-11-03", 3, 1, 2)]))
    for figure in (
        *("CNY 0.123457", "CNY 1.11", "75.0 %", "1,200", "0.1234567890123", "1,234.5", "1,234,567"),
        *("-0.5", "early", "night: half", "CNY 12.25", "64 tokens (without an end)", "1,280"),
        *("r-17", "credit", "outage"),
        *("acme 7 (abcdef012345)", "2026-11-01 up to 2026-12-01, UTC", "cache_write 1h"),
    ):
        assert figure in page.text, figure
    assert "no price yet" not in page.text


def test_bars_are_as_high_as_their_tokens_and_days_without_usage_are_gaps() -> None:
    days = [day("2026-11-01", 50, 30, 20), day("2026-11-04", 0, 25, 25), day("2026-12-24", 0, 0, 0)]
    page = Page(invoice_page(invoice(), days))
    assert [(bar["class"], float(bar["height"])) for bar in page.bars] == [
        ("hit_tokens", 75.0),
        ("miss_tokens", 45.0),
        ("output_tokens", 30.0),
        ("miss_tokens", 37.5),
        ("output_tokens", 37.5),
    ]
    first, last = float(page.bars[0]["x"]), float(page.bars[-1]["x"])
    assert last - first == 3 * 680 / 4
    assert float(page.bars[0]["y"]) == 75.0
    assert "100 tokens" in page.text
    assert "Tokens by day" in page.text


def test_a_long_period_is_drawn_by_month() -> None:
    days = [day("2026-01-31", 1, 1, 0), day("2026-01-02", 1, 0, 0), day("2026-07-01", 0, 3, 0)]
    page = Page(invoice_page(invoice(), days))
    assert "Tokens by month" in page.text
    assert "2026-04" in page.text
    assert [(bar["class"], float(bar["height"])) for bar in page.bars] == [
        ("hit_tokens", 100.0),
        ("miss_tokens", 50.0),
        ("miss_tokens", 150.0),
    ]


def test_rows_of_several_currencies_are_one_day() -> None:
    days = [day("2026-11-01", 5, 0, 0), day("2026-11-01", 5, 0, 0)]
    page = Page(invoice_page(invoice(unrated_request_count=3), days))
    assert len(page.bars) == 1
    assert "3 of these requests have no price yet" in page.text


def test_a_period_without_usage_says_so() -> None:
    page = Page(invoice_page(invoice(currency="", period={"start": None, "end": None}), []))
    assert "No usage in this period." in page.text
    assert "the first event up to now" in page.text
    assert page.bars == []


def test_names_are_text_and_nothing_is_loaded() -> None:
    evil = '<script src="http://evil.example/x.js"></script>'
    data = invoice(line(evil, "hit", "1", rule=evil, price_book_version=evil), tenant=evil)
    html = invoice_page(data, [day("2026-11-01", 1, 1, 1)])
    page = Page(html)
    assert "script" not in page.tags
    assert page.text.count(evil) == 5, "title, head, model, rule and price book"
    assert page.links == []
    assert not re.search(r"@import|url\(", html)
