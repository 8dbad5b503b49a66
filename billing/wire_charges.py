"""Charges as messages of `kvtier.v1`, and as plain data. Pure functions, any thread."""

from datetime import date, timedelta
from typing import Any

from billing.charges import Charge
from billing.corrected import CorrectedEntry
from billing.money import to_text
from billing.period import DAY_NS
from kvtier.v1 import usage_pb2

__all__ = ["CHARGE_KEYS", "charge_data", "charge_message", "correction_charge"]

CHARGE_KEYS = (
    "day",
    "tenant",
    "project",
    "key",
    "model",
    "token_class",
    "cache_write_ttl_class",
    "quantity",
    "unit_price",
    "unit_tokens",
    "amount",
    "currency",
    "price_book_version",
    "rule",
)
"""Keys of `charge_data`."""

_EPOCH = date(1970, 1, 1)


def charge_message(charge: Charge) -> usage_pb2.Charge:
    key = charge.key
    message = usage_pb2.Charge(
        day=str(_EPOCH + timedelta(charge.day)),
        tenant_id=charge.tenant_id,
        model=charge.model,
        token_class=key.meter,
        cache_write_ttl_class=key.ttl_class,
        quantity=charge.quantity,
        unit_price=to_text(key.unit_price),
        unit_tokens=key.per,
        amount=to_text(charge.amount),
        currency_code=charge.version.currency,
        price_book_version=charge.version.name,
        rule=key.rule,
    )
    if charge.project_id is not None:
        message.project_id = charge.project_id
    if charge.key_id is not None:
        message.key_id = charge.key_id
    return message


def correction_charge(corrected: CorrectedEntry) -> usage_pb2.Charge:
    correction = corrected.correction
    message = usage_pb2.Charge(
        day=str(_EPOCH + timedelta(correction.time_ns // DAY_NS)),
        tenant_id=correction.tenant_id,
        model=corrected.model,
        token_class=correction.ask.kind.value,
        amount=to_text(correction.amount),
        currency_code=correction.currency,
        rule=correction.ask.reason,
    )
    if corrected.project_id is not None:
        message.project_id = corrected.project_id
    if corrected.key_id is not None:
        message.key_id = corrected.key_id
    return message


def charge_data(message: usage_pb2.Charge) -> dict[str, Any]:
    """By CHARGE_KEYS. None is what nobody said, or a correction has not; amounts stay text."""
    priced = message.unit_tokens > 0
    return {
        "day": message.day,
        "tenant": message.tenant_id,
        "project": message.project_id if message.HasField("project_id") else None,
        "key": message.key_id if message.HasField("key_id") else None,
        "model": message.model,
        "token_class": message.token_class,
        "cache_write_ttl_class": message.cache_write_ttl_class,
        "quantity": message.quantity if priced else None,
        "unit_price": message.unit_price if priced else None,
        "unit_tokens": message.unit_tokens if priced else None,
        "amount": message.amount,
        "currency": message.currency_code,
        "price_book_version": message.price_book_version,
        "rule": message.rule,
    }
