"""Charges in the columns of FOCUS, the FinOps Open Cost and Usage Specification, version 1.2.

One row a charge (https://focus.finops.org/focus-specification/v1-2/): a day of UTC, in the calendar
month as billing period. What the specification wants and kvtier does not know is empty, as it
allows; columns of our own begin with `x_`. Amounts are exact and unrounded, and PricingQuantity
times a unit price is the cost to the last digit. Pure.
"""

from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from billing.money import EXACT, to_text

__all__ = ["FOCUS_COLUMNS", "FOCUS_VERSION", "focus_row"]

FOCUS_VERSION = "1.2"

_UNITS = {"request": "Requests"}
"""Of a token class; tokens otherwise."""
_TEXTS = (
    "BillingAccountId",
    "BillingAccountName",
    "BillingAccountType",
    "BillingCurrency",
    "ChargeCategory",
    "ChargeClass",
    "ChargeDescription",
    "ChargeFrequency",
    "ConsumedUnit",
    "InvoiceId",
    "InvoiceIssuerName",
    "PricingCategory",
    "PricingUnit",
    "ProviderName",
    "PublisherName",
    "RegionId",
    "RegionName",
    "ResourceId",
    "ResourceName",
    "ResourceType",
    "ServiceCategory",
    "ServiceName",
    "ServiceSubcategory",
    "SkuId",
    "SkuMeter",
    "SkuPriceId",
    "SubAccountId",
    "SubAccountName",
    "SubAccountType",
    "x_PriceBookVersion",
    "x_PriceRule",
    "x_KeyId",
    "x_TokenClass",
    "x_CacheWriteTtlClass",
)
_NUMBERS = (
    "BilledCost",
    "ConsumedQuantity",
    "ContractedCost",
    "ContractedUnitPrice",
    "EffectiveCost",
    "ListCost",
    "ListUnitPrice",
    "PricingQuantity",
)
_TIMES = ("BillingPeriodEnd", "BillingPeriodStart", "ChargePeriodEnd", "ChargePeriodStart")

_PRICED = (
    "ConsumedQuantity",
    "ConsumedUnit",
    "ContractedUnitPrice",
    "ListUnitPrice",
    "PricingCategory",
    "PricingQuantity",
    "PricingUnit",
    "SkuId",
    "SkuMeter",
    "SkuPriceId",
    "x_PriceRule",
)
"""What a correction has not."""

FOCUS_COLUMNS: Mapping[str, type] = {
    **dict.fromkeys(_TEXTS, str),
    **dict.fromkeys(_NUMBERS, Decimal),
    **dict.fromkeys(_TIMES, datetime),
}
"""Every column and what it holds; decimals are text in `focus_row`."""


def focus_row(charge: Mapping[str, Any], provider: str) -> dict[str, Any]:
    """Of `charge_data`; `provider` is who sells. None is null, decimals are text."""
    day = date.fromisoformat(charge["day"])
    month = day.replace(day=1)
    unit = _UNITS.get(charge["token_class"], "Tokens")
    per, amount, price = charge["unit_tokens"], charge["amount"], charge["unit_price"]
    if price is None:
        return _correction(charge, provider)
    meter = _meter(charge)
    row: dict[str, Any] = dict.fromkeys(FOCUS_COLUMNS)
    return row | {
        "BilledCost": amount,
        "BillingAccountId": charge["tenant"],
        "BillingAccountName": charge["tenant"],
        "BillingAccountType": "Tenant",
        "BillingCurrency": charge["currency"],
        "BillingPeriodEnd": _utc((month + timedelta(31)).replace(day=1)),
        "BillingPeriodStart": _utc(month),
        "ChargeCategory": "Usage",
        "ChargeDescription": f"{charge['model']}: {meter} {unit.lower()}",
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodEnd": _utc(day + timedelta(1)),
        "ChargePeriodStart": _utc(day),
        "ConsumedQuantity": str(charge["quantity"]),
        "ConsumedUnit": unit,
        "ContractedCost": amount,
        "ContractedUnitPrice": price,
        "EffectiveCost": amount,
        "InvoiceIssuerName": provider,
        "ListCost": amount,
        "ListUnitPrice": price,
        "PricingCategory": "Standard",
        "PricingQuantity": to_text(EXACT.divide(Decimal(charge["quantity"]), Decimal(per))),
        "PricingUnit": unit if per == 1 else f"{per} {unit}",
        "ProviderName": provider,
        "PublisherName": provider,
        "ResourceId": charge["model"],
        "ResourceName": charge["model"],
        "ResourceType": "Model",
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "LLM inference",
        "ServiceSubcategory": "Generative AI",
        "SkuId": f"{charge['model']}/{meter}",
        "SkuMeter": f"{meter} {unit.lower()}",
        "SkuPriceId": "/".join(
            part
            for part in (charge["price_book_version"], charge["model"], meter, charge["rule"])
            if part
        ),
        "SubAccountId": charge["project"],
        "SubAccountName": charge["project"],
        "SubAccountType": None if charge["project"] is None else "Project",
        "x_PriceBookVersion": charge["price_book_version"] or None,
        "x_PriceRule": charge["rule"] or None,
        "x_KeyId": charge["key"],
        "x_TokenClass": charge["token_class"],
        "x_CacheWriteTtlClass": charge["cache_write_ttl_class"] or None,
    }


def _correction(charge: Mapping[str, Any], provider: str) -> dict[str, Any]:
    """Its amount, in the month in which it was made; without quantity and price."""
    row = focus_row({**charge, "quantity": 0, "unit_tokens": 1, "unit_price": "0"}, provider)
    return row | {
        **dict.fromkeys(_PRICED),
        "ChargeClass": "Correction",
        "ChargeDescription": f"{charge['token_class']}: {charge['rule']}",
        "ChargeFrequency": "One-Time",
    }


def _meter(charge: Mapping[str, Any]) -> str:
    ttl_class = charge["cache_write_ttl_class"]
    return f"{charge['token_class']} {ttl_class}" if ttl_class else str(charge["token_class"])


def _utc(day: date) -> str:
    return f"{datetime.combine(day, time()).isoformat()}Z"
