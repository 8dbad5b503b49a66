"""What hits save under a price book: the file that billing rates with (docs/billing.md).

A trace has no date and no tenant, so the newest version counts, and one model's base rates,
whatever layers a book of format 2 has over them. Only what is needed here is looked at: billing is
who refuses a book that is not in order.
"""

import tomllib
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from cache_service.replay.result import Savings

__all__ = ["InputPrices", "PriceBookUnusableError", "read_prices"]

FORMATS = (1, 2)
ANY_MODEL = "*"
PRICE_TOKENS = 1_000_000
"""Prices are per so many tokens, unless a book says otherwise."""


class PriceBookUnusableError(ValueError):
    """The file is no price book with these prices; the message names file and problem."""

    reason = "PRICE_BOOK_UNUSABLE"


class InputPrices:
    """Hit and miss price of PRICE_TOKENS."""

    def __init__(self, currency: str, version: str, hit: Decimal, miss: Decimal) -> None:
        self.currency = currency
        self.version = version
        self.hit = hit
        self.miss = miss

    def savings(self, input_tokens: int, hit_tokens: int) -> Savings:
        """What the input costs with and without a cache."""
        without = input_tokens * self.miss / PRICE_TOKENS
        paid = (hit_tokens * self.hit + (input_tokens - hit_tokens) * self.miss) / PRICE_TOKENS
        return Savings(self.currency, self.version, without, paid)


def read_prices(path: Path, model: str = ANY_MODEL) -> InputPrices:
    """The newest version's prices for `model`. Raises PriceBookUnusableError."""
    try:
        book = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        said = (isinstance(error, OSError) and error.strerror) or str(error)
        raise PriceBookUnusableError(f"{path}: {said}; name a price book in TOML") from None
    try:
        return _newest(book, model)
    except (KeyError, TypeError, ValueError, InvalidOperation) as error:
        raise PriceBookUnusableError(
            f"{path} is not a usable price book: {error!r}; billing/default_prices.toml is one"
        ) from None


def _newest(book: dict[str, Any], model: str) -> InputPrices:
    if book["format"] not in FORMATS:
        raise ValueError(f"format {book['format']} is none of {FORMATS}")
    version = max(book["versions"], key=lambda each: each["effective_time"])
    prices = {each["model"]: each for each in version["prices"]}
    price = prices.get(model) or prices.get(ANY_MODEL)
    if price is None:
        raise ValueError(f"no price for model {model}")
    times = Decimal(PRICE_TOKENS) / price.get("per", PRICE_TOKENS)
    hit, miss = (_rate(price, key) * times for key in ("hit", "miss"))
    return InputPrices(version["currency"], version["name"], hit, miss)


def _rate(price: dict[str, Any], key: str) -> Decimal:
    """A price, or times another rate that is one."""
    rate = price[key]
    if isinstance(rate, dict):
        return Decimal(rate["times"]) * Decimal(price[rate["of"]])
    return Decimal(rate)
