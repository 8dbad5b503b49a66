"""Exact amounts: decimals that are never rounded by accident.

Invariant: arithmetic through `EXACT` is exact or raises; nothing here ever touches a float. The one
places that round are `round_line` and `round_fraction`, one of them once per invoice line. Pure
functions, any thread.
"""

import re
from decimal import ROUND_HALF_EVEN, Clamped, Context, Decimal, Inexact, InvalidOperation, Overflow
from fractions import Fraction

__all__ = [
    "EXACT",
    "ONE",
    "UNIT_TOKENS",
    "ZERO",
    "amount_of",
    "parse_factor",
    "parse_price",
    "round_fraction",
    "round_line",
    "to_text",
]

UNIT_TOKENS = 1_000_000
"""Prices are per this many tokens. Frozen: stored amounts depend on it. A power of ten, so that
dividing by it is exact."""

EXACT = Context(prec=400, traps=[Inexact, InvalidOperation, Overflow, Clamped])
"""Raises `Inexact` where a digit would be lost: 400 digits hold any sum of a ledger's amounts, of
prices under every factor that a card may stack on them."""

ZERO = Decimal(0)
ONE = Decimal(1)

_PRICE = re.compile(r"(0|[1-9][0-9]{0,11})(\.[0-9]{1,12})?")
_FACTOR = re.compile(r"(0|[1-9][0-9]{0,3})(\.[0-9]{1,6})?")


def parse_price(text: str) -> Decimal:
    """A price as plain decimal text, not negative. Raises ValueError with what is wrong."""
    if not _PRICE.fullmatch(text):
        raise ValueError(
            f'"{text}" is not a price: write digits with at most 12 before and 12 after the point,'
            ' for example "0.1"'
        )
    return Decimal(text)


def parse_factor(text: str) -> Decimal:
    """What a price is multiplied by, as plain decimal text. Raises ValueError."""
    if not _FACTOR.fullmatch(text):
        raise ValueError(
            f'"{text}" is not a factor: write digits with at most 4 before and 6 after the point,'
            ' for example "0.5"'
        )
    return Decimal(text)


def amount_of(quantity: int, unit_price: Decimal, exponent: int = -6) -> Decimal:
    """What `quantity` costs at `unit_price` per UNIT_TOKENS, to the last digit.

    `exponent`: of another power of ten that the price is per, negative.
    """
    return EXACT.scaleb(EXACT.multiply(Decimal(quantity), unit_price), exponent)


def round_line(amount: Decimal, decimals: int) -> Decimal:
    """An invoice line's amount: half to even, `decimals` places. The only rounding there is."""
    context = Context(prec=400, rounding=ROUND_HALF_EVEN, traps=[InvalidOperation])
    rounded = amount.quantize(Decimal(1).scaleb(-decimals), context=context)
    return rounded if rounded else rounded.copy_abs()


def round_fraction(amount: Fraction, decimals: int) -> Decimal:
    """As `round_line`, of an amount that no decimal may be equal to: one of hours."""
    scaled = round(amount * 10**decimals)  # half to even, in integers
    return EXACT.scaleb(Decimal(scaled), -decimals)


def to_text(amount: Decimal) -> str:
    """Canonical text: no exponent, no trailing zeros, no negative zero. Frozen: it is hashed."""
    if not amount:
        return "0"
    text = format(amount, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
