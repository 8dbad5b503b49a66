"""Price book: dated prices that never change.

A version holds from its `effective_time` until the next one's; the *event's end time* picks it,
never the clock, so an event rated late costs the same. The ledger names a version by the SHA-256 of
its canonical text; versions that were used are stored there, so old amounts can be recomputed
without the file. Frozen data, any thread.
"""

import hashlib
import json
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import NewType

from billing.money import parse_price, to_text

__all__ = ["ANY_CLASS", "Price", "PriceBook", "PriceId", "PriceVersion", "version_from_text"]

ANY_CLASS = "*"
"""Every TTL class without a price of its own, "" (without an end) too."""

PriceId = NewType("PriceId", str)
"""SHA-256 of a version's canonical text, hexadecimal."""


@dataclass(frozen=True, slots=True)
class Price:
    """Prices of one kind of model, per UNIT_TOKENS tokens of each class."""

    model_pattern: str
    """A model's name; "*" stands for any run of characters, "?" for one."""
    hit: Decimal
    miss: Decimal
    output: Decimal
    cache_write: tuple[tuple[str, Decimal], ...] = ()
    """(TTL class, price on top of miss and output), by class; ANY_CLASS for all others."""

    def cache_write_price(self, ttl_class: str) -> Decimal | None:
        """None: such tokens cost nothing beside miss and output."""
        prices = dict(self.cache_write)
        return prices.get(ttl_class, prices.get(ANY_CLASS))

    def fits(self, model: str) -> bool:
        return _compiled(self.model_pattern).fullmatch(model) is not None


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"([*?])", pattern)
    wild = {"*": ".*", "?": "."}
    return re.compile("".join(wild.get(part) or re.escape(part) for part in parts), re.DOTALL)


@dataclass(frozen=True)
class PriceVersion:
    """All prices from `effective_time_ns` on."""

    name: str
    effective_time_ns: int
    currency: str
    source: str
    invoice_decimals: int
    """Places an invoice line's amount is rounded to."""
    prices: tuple[Price, ...]
    """The first that fits a model holds."""

    def price_of(self, model: str) -> Price | None:
        """None: this version does not cover the model."""
        return next((price for price in self.prices if price.fits(model)), None)

    @cached_property
    def text(self) -> str:
        """Canonical text, one line of ASCII JSON. Frozen: its hash names the version."""
        fields = {
            "currency": self.currency,
            "effective_time_ns": self.effective_time_ns,
            "invoice_decimals": self.invoice_decimals,
            "name": self.name,
            "prices": [
                [p.model_pattern, to_text(p.hit), to_text(p.miss), to_text(p.output), *_written(p)]
                for p in self.prices
            ],
            "source": self.source,
        }
        return json.dumps(fields, separators=(",", ":"), ensure_ascii=True)

    @cached_property
    def id(self) -> PriceId:
        return PriceId(hashlib.sha256(self.text.encode()).hexdigest())


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
        return version if version is not None and version.price_of(model) else None


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
        fields = json.loads(text)
        version = PriceVersion(
            name=fields["name"],
            effective_time_ns=fields["effective_time_ns"],
            currency=fields["currency"],
            source=fields["source"],
            invoice_decimals=fields["invoice_decimals"],
            prices=tuple(_read(*parts) for parts in fields["prices"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a stored price version: {error}") from None
    if version.text != text:
        raise ValueError("not the canonical text of a price version")
    return version
