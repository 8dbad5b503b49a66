"""Price book: dated prices that never change.

A version holds from its `effective_time` until the next one's; the *event's end time* picks it,
never the clock, so an event rated late costs the same. The ledger names a version by the SHA-256 of
its canonical text; versions that were used are stored there, so old amounts can be recomputed
without the file. Format 1 has a `Price` for each pattern of models, format 2 a `RateCard`; both are
rated as cards. Frozen data, any thread.
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property
from itertools import pairwise
from typing import Any, NewType

from billing.calendar import Calendar, Window
from billing.money import parse_price, to_text
from billing.price_card import ANY_CLASS, CACHE_WRITE, Change, Rate, RateCard
from billing.price_text import (
    FORMAT,
    canonical,
    card_data,
    card_of_data,
    time_data,
    time_of_data,
    whole,
)

__all__ = [
    "ANY_CLASS",
    "Price",
    "PriceBook",
    "PriceId",
    "PriceVersion",
    "settled",
    "version_from_text",
]

PriceId = NewType("PriceId", str)
"""SHA-256 of a version's canonical text, hexadecimal."""

_MODELS_REMEMBERED = 1_024


@dataclass(frozen=True, slots=True)
class Price:
    """Prices of one kind of model, per UNIT_TOKENS tokens of each class: all that format 1 has."""

    model_pattern: str
    """A model's name; "*" stands for any run of characters, "?" for one."""
    hit: Decimal
    miss: Decimal
    output: Decimal
    cache_write: tuple[tuple[str, Decimal], ...] = ()
    """(TTL class, price on top of miss and output), by class; ANY_CLASS for all others."""

    @property
    def card(self) -> RateCard:
        """What rating goes by."""
        writes = tuple((f"{CACHE_WRITE}:{name}", Rate(price)) for name, price in self.cache_write)
        rates = (("hit", Rate(self.hit)), ("miss", Rate(self.miss)), ("output", Rate(self.output)))
        return RateCard(self.model_pattern, Change((*writes, *rates)))


@dataclass(frozen=True)
class PriceVersion:
    """All prices from `effective_time_ns` on."""

    name: str
    effective_time_ns: int
    currency: str
    source: str
    invoice_decimals: int
    """Places an invoice line's amount is rounded to."""
    prices: tuple[Price, ...] = ()
    """Of format 1; then there are no `rate_cards`."""
    rate_cards: tuple[RateCard, ...] = ()
    """Of format 2."""
    calendars: tuple[Calendar, ...] = ()
    windows: tuple[Window, ...] = ()

    @cached_property
    def cards(self) -> tuple[RateCard, ...]:
        return self.rate_cards or tuple(price.card for price in self.prices)

    @cached_property
    def linear(self) -> bool:
        """Whether every card prices sums as the sum of its parts."""
        return all(card.linear for card in self.cards)

    def card_of(self, model: str) -> RateCard | None:
        """The first card that fits; None: this version does not cover the model."""
        found = self._by_model
        if model not in found:
            if len(found) >= _MODELS_REMEMBERED:
                found.clear()
            found[model] = next((card for card in self.cards if card.fits(model)), None)
        return found[model]

    def window_at(self, names: Sequence[str], time_ns: int) -> int:
        """Place in `names` of the first window that holds; -1 when none does."""
        for place, name in enumerate(names):
            window, calendar = self._windows[name]
            if window.holds(calendar, time_ns):
                return place
        return -1

    @cached_property
    def text(self) -> str:
        """Canonical text, one line of ASCII JSON. Frozen: its hash names the version."""
        fields: dict[str, Any] = {
            "currency": self.currency,
            "effective_time_ns": self.effective_time_ns,
            "invoice_decimals": self.invoice_decimals,
            "name": self.name,
            "source": self.source,
        }
        if self.rate_cards:
            cards = [card_data(card) for card in self.rate_cards]
            times = time_data(self.calendars, self.windows)
            return canonical({**fields, **times, "cards": cards, "format": FORMAT})
        prices = [
            [p.model_pattern, to_text(p.hit), to_text(p.miss), to_text(p.output), *_written(p)]
            for p in self.prices
        ]
        return canonical({**fields, "prices": prices})

    @cached_property
    def id(self) -> PriceId:
        return PriceId(hashlib.sha256(self.text.encode()).hexdigest())

    @cached_property
    def _by_model(self) -> dict[str, RateCard | None]:
        """Only remembers."""
        return {}

    @cached_property
    def _windows(self) -> dict[str, tuple[Window, Calendar]]:
        calendars = {calendar.name: calendar for calendar in self.calendars}
        return {window.name: (window, calendars[window.calendar]) for window in self.windows}


@dataclass(frozen=True)
class PriceBook:
    """Versions, oldest first, each with its own start."""

    versions: tuple[PriceVersion, ...]

    def __post_init__(self) -> None:
        starts = self._starts
        if any(later <= sooner for sooner, later in pairwise(starts)):
            raise ValueError("versions must be ordered by different start times")

    @cached_property
    def _starts(self) -> list[int]:
        return [version.effective_time_ns for version in self.versions]

    def version_at(self, time_ns: int) -> PriceVersion | None:
        """The version in effect at `time_ns`; None before the first."""
        index = bisect_right(self._starts, time_ns)
        return self.versions[index - 1] if index else None

    def version_for(self, time_ns: int, model: str) -> PriceVersion | None:
        """The version in effect, if it has a price for `model`."""
        version = self.version_at(time_ns)
        return version if version is not None and version.card_of(model) else None


def _read(
    pattern: str, hit: str, miss: str, output: str, cache_write: Sequence[tuple[str, str]] = ()
) -> Price:
    written = tuple((name, parse_price(text)) for name, text in cache_write)
    return Price(pattern, parse_price(hit), parse_price(miss), parse_price(output), written)


def _written(price: Price) -> list[list[list[str]]]:
    """Nothing where there is none: the text of such a price is that of before there were any."""
    return (
        [[[name, to_text(each)] for name, each in price.cache_write]] if price.cache_write else []
    )


def version_from_text(text: str) -> PriceVersion:
    """Inverse of `PriceVersion.text`. Raises ValueError when `text` is not exactly such a line."""
    try:
        version = _version_of(json.loads(text))
        same = version.text == text
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError) as error:
        raise ValueError(f"not a stored price version: {error}") from None
    if not same:
        raise ValueError("not the canonical text of a price version")
    return version


def _version_of(fields: dict[str, Any]) -> PriceVersion:
    if not all(isinstance(fields[name], str) for name in ("name", "currency", "source")):
        raise TypeError("name, currency and source are text")
    version = PriceVersion(
        name=fields["name"],
        effective_time_ns=whole(fields["effective_time_ns"]),
        currency=fields["currency"],
        source=fields["source"],
        invoice_decimals=whole(fields["invoice_decimals"]),
    )
    if "format" not in fields:
        return replace(version, prices=tuple(_read(*parts) for parts in fields["prices"]))
    if fields["format"] != FORMAT:
        raise ValueError(f"a price version of format {fields['format']}, of a newer kvtier")
    calendars, windows = time_of_data(fields)
    cards = tuple(card_of_data(each) for each in fields["cards"])
    return replace(version, rate_cards=cards, calendars=calendars, windows=windows)


def settled(book: PriceBook, stored_texts: Iterable[str]) -> PriceBook:
    """`book`, with the stored version in place of one that differs by nothing but what this
    machine's zone data says: what was promised stays, whoever changes the clocks later."""
    kept = {}
    for text in stored_texts:
        try:
            version = version_from_text(text)
        except ValueError:
            continue  # verification is who says that it was changed
        kept[version.name] = version
    return PriceBook(
        tuple(
            kept[each.name]
            if each.name in kept and _timeless(each) == _timeless(kept[each.name])
            else each
            for each in book.versions
        )
    )


def _timeless(version: PriceVersion) -> PriceVersion:
    calendars = tuple(replace(calendar, offsets=()) for calendar in version.calendars)
    return replace(version, calendars=calendars)
