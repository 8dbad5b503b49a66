"""What the price commands print, as plain data: one shape for table and JSON.

Invariant: amounts are decimal text, carried through unchanged; the only sums made here are
differences, exact, in `Decimal`. Pure functions.
"""

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

from billing.money import EXACT, to_text
from billing.terms import Terms
from kvtier.v1 import usage_pb2

__all__ = ["check_data", "line_data", "rate_data", "rerate_data"]


def check_data(
    problems: Sequence[str], book: dict[str, Any], terms: Iterable[Terms]
) -> dict[str, Any]:
    return {
        "usable": not problems,
        "problems": [problem.strip() for problem in problems],
        **book,
        "terms": [
            {"name": each.name, "tenant": each.tenant_pattern, "content_hash": each.id}
            for each in terms
        ],
    }


def rate_data(rated: usage_pb2.RateUsageResponse) -> dict[str, Any]:
    return {
        "amount": rated.amount,
        "saved": rated.saved_amount,
        "currency": rated.currency_code,
        "price_book_version": rated.price_book_version,
        "lines": [line_data(line) for line in rated.lines],
        "notes": list(rated.notes),
    }


def line_data(line: usage_pb2.RatedLine) -> dict[str, Any]:
    return {
        "token_class": line.token_class,
        "cache_write_ttl_class": line.cache_write_ttl_class,
        "quantity": line.quantity,
        "unit_price": line.unit_price,
        "unit_tokens": line.unit_tokens,
        "amount": line.amount,
        "rule": line.rule,
        "derivation": list(line.derivation),
    }


def rerate_data(
    response: usage_pb2.RerateUsageResponse, group_by: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """A row for each group and currency. `difference`: null where one of both has no price."""
    rows = []
    for message in response.rows:
        charged = {each.currency_code: each for each in message.charged}
        rerated = {each.currency_code: each for each in message.rerated}
        for currency in sorted(charged.keys() | rerated.keys()):
            one, other = charged.get(currency), rerated.get(currency)
            rows.append(
                {
                    **{name: message.group[name] for name in group_by},
                    "currency": currency,
                    "charged_requests": one.request_count if one else 0,
                    "charged": one.amount if one and currency else None,
                    "rerated_requests": other.request_count if other else 0,
                    "rerated": other.amount if other and currency else None,
                    "difference": _less(other.amount, one.amount)
                    if one and other and currency
                    else None,
                    "saved": one.saved_amount if one and currency else None,
                    "rerated_saved": other.saved_amount if other and currency else None,
                }
            )
    return {"rows": rows}


def _less(amount: str, other: str) -> str:
    return to_text(EXACT.subtract(Decimal(amount), Decimal(other)))
