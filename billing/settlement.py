"""Settlement: what an account owes for a month, from list lines and terms.

    list lines (usage and storage)
    - allowances      the dearest first, so that who has one gets the most of it
    - discounts       of what is left
    + minimum charge  what is missing to it
    - credits         those that expire first, first
    = total

Invariant: amounts are exact until each line is rounded once, half to even; the total is the sum of
the lines as printed, so it can be checked by adding up. The order in which usage came changes
nothing. Pure, any thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import Enum
from fractions import Fraction

from billing.line import LineKey
from billing.money import EXACT, ZERO, round_fraction
from billing.storage import StorageCharge
from billing.terms import Allowance, Credit, Terms

__all__ = ["Adjustment", "AdjustmentKind", "CreditState", "Settlement", "UsageCharge", "settle"]


class AdjustmentKind(Enum):
    """Values go over the wire: frozen."""

    STORAGE = "storage"
    ALLOWANCE = "allowance"
    DISCOUNT = "discount"
    MINIMUM_CHARGE = "minimum_charge"
    CREDIT = "credit"


@dataclass(frozen=True, slots=True)
class UsageCharge:
    """A line of usage at list price, before it is rounded."""

    model: str
    key: LineKey
    quantity: int


@dataclass(frozen=True, slots=True)
class Adjustment:
    """A line beside those of usage."""

    kind: AdjustmentKind
    name: str
    amount: Decimal
    """Rounded; what the account gets is negative."""
    quantity: int = 0
    """Of an allowance: how many cost nothing."""


@dataclass(frozen=True, slots=True)
class CreditState:
    credit: Credit
    left: Decimal


@dataclass(frozen=True, slots=True)
class Settlement:
    adjustments: tuple[Adjustment, ...]
    credits: tuple[CreditState, ...]
    """What is left of each after this month."""


@dataclass(slots=True)
class _Open:
    """A line while terms are applied to it."""

    model: str
    meter: str
    amount: Fraction
    key: LineKey | None = None
    quantity: int = 0


def settle(
    usage: Sequence[UsageCharge],
    storage: Sequence[StorageCharge],
    listed: Decimal,
    terms: Terms,
    credits_: Sequence[CreditState],
) -> Settlement:
    """`listed`: the sum of the lines of usage and storage as printed. `credits_`: those valid."""
    lines = [
        _Open(
            each.model,
            each.key.meter,
            Fraction(each.key.amount(each.quantity)),
            each.key,
            each.quantity,
        )
        for each in usage
    ]
    lines += [_Open(each.model, "storage", each.amount) for each in storage]
    adjustments = [_allowed(each, lines, terms.decimals) for each in terms.allowances]
    adjustments += _discounted(lines, terms)
    found = []
    total = listed
    for each in adjustments:
        # Many lines rounded down and one that is not may differ by a unit: nobody is owed that.
        amount = max(each.amount, EXACT.minus(total))
        total = EXACT.add(total, amount)
        if amount or each.quantity:
            found.append(replace(each, amount=amount))
    if total < terms.minimum_charge and terms.minimum_charge:
        missing = EXACT.subtract(terms.minimum_charge, total)
        found.append(Adjustment(AdjustmentKind.MINIMUM_CHARGE, terms.name, missing))
        total = terms.minimum_charge
    left = []
    for state in sorted(credits_, key=lambda state: (state.credit.end_ns, state.credit.name)):
        used = max(min(state.left, total), ZERO)
        if used:
            negative = EXACT.minus(used)
            found.append(Adjustment(AdjustmentKind.CREDIT, state.credit.name, negative))
        total = EXACT.subtract(total, used)
        left.append(CreditState(state.credit, EXACT.subtract(state.left, used)))
    return Settlement(tuple(found), tuple(left))


def _allowed(allowance: Allowance, lines: list[_Open], decimals: int) -> Adjustment:
    """Takes from `lines` what costs nothing."""
    fitting = [
        line
        for line in lines
        if line.key is not None and line.quantity and allowance.holds(line.model, line.meter)
    ]
    # Price first, then what makes the order the same whoever asks.
    fitting.sort(key=lambda line: (-_unit(line), line.model, line.meter, _rule(line)))
    free, amount = allowance.quantity, Fraction(0)
    for line in fitting:
        assert line.key is not None
        taken = min(free, line.quantity)
        free -= taken
        line.quantity -= taken
        part = Fraction(line.key.amount(taken))
        line.amount -= part
        amount += part
    rounded = round_fraction(-amount, decimals)
    return Adjustment(AdjustmentKind.ALLOWANCE, allowance.name, rounded, allowance.quantity - free)


def _discounted(lines: Sequence[_Open], terms: Terms) -> list[Adjustment]:
    amounts = dict.fromkeys((each.name for each in terms.discounts), Fraction(0))
    for line in lines:
        for each in terms.discounts:
            if each.holds(line.model, line.meter):
                amounts[each.name] += line.amount * (1 - Fraction(each.times))
                break
    return [
        Adjustment(AdjustmentKind.DISCOUNT, name, round_fraction(-amount, terms.decimals))
        for name, amount in amounts.items()
    ]


def _unit(line: _Open) -> Fraction:
    assert line.key is not None
    return Fraction(line.key.unit_price) / line.key.per


def _rule(line: _Open) -> tuple[str, str]:
    assert line.key is not None
    return line.key.rule, line.key.ttl_class
