"""Whether a receipt's data has the keys and kinds of values that receipts have, and where not.

What the values say is for `receipt_check`. Pure, any thread.
"""

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from billing.money import to_text
from billing.receipt import FORMAT, ReceiptFormError

__all__ = ["check_shape"]

Check = Callable[[Any, str], None]


def check_shape(data: Mapping[str, Any]) -> None:
    """Of a file's data. Raises ReceiptFormError."""
    inner = data.get("receipt")
    if isinstance(inner, dict) and inner.get("format", FORMAT) != FORMAT:
        raise ReceiptFormError(
            "format", f"it is of format {inner['format']}; this kvtier reads format {FORMAT}"
        )
    keys = {"receipt": _object(_RECEIPT), "signature": _hex(64)}
    _object({**keys, "opening": _hex(32)} if "opening" in data else keys, inside="receipt")(
        data, ""
    )


def _object(checks: Mapping[str, Check], inside: str = "") -> Check:
    """Exactly these keys; the parts of `inside` are called without it."""

    def check(value: Any, path: str) -> None:
        if not isinstance(value, dict):
            raise ReceiptFormError(path, "is not an object")
        for key in sorted(checks.keys() | value.keys()):
            name = f"{path}.{key}" if path else key
            if key not in value:
                raise ReceiptFormError(name, "is missing")
            if key not in checks:
                raise ReceiptFormError(name, "is nothing that receipts have")
        for key, each in checks.items():
            each(value[key], "" if key == inside else f"{path}.{key}" if path else key)

    return check


def _list(of: Check) -> Check:
    def check(value: Any, path: str) -> None:
        if not isinstance(value, list):
            raise ReceiptFormError(path, "is not a list")
        for index, each in enumerate(value):
            of(each, f"{path}[{index}]")

    return check


def _hex(count: int) -> Check:
    pattern = re.compile(f"[0-9a-f]{{{2 * count}}}")

    def check(value: Any, path: str) -> None:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ReceiptFormError(path, f"is not {count} bytes in lower-case hexadecimal")

    return check


def _or_null(of: Check) -> Check:
    def check(value: Any, path: str) -> None:
        if value is not None:
            of(value, path)

    return check


def _text(value: Any, path: str) -> None:
    if not isinstance(value, str):
        raise ReceiptFormError(path, "is not a text")


def _whole(value: Any, path: str) -> None:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ReceiptFormError(path, "is not a whole number")


_DECIMAL = re.compile(r"-?[0-9]{1,200}(\.[0-9]{1,200})?")


def _amount(value: Any, path: str) -> None:
    if not isinstance(value, str) or not _DECIMAL.fullmatch(value):
        raise ReceiptFormError(path, "is not an amount")
    if to_text(Decimal(value)) != value:
        raise ReceiptFormError(path, "is not written as amounts are")


def _any_object(value: Any, path: str) -> None:
    if not isinstance(value, dict):
        raise ReceiptFormError(path, "is not an object")


_ENTRY: dict[str, Check] = {
    "hash": _hex(32),
    "position": _whole,
    "previous_hash": _hex(32),
    "price": _or_null(_hex(32)),
    "recorded_time_ns": _whole,
}

_KEY: dict[str, Check] = {
    "number": _whole,
    "public_key": _hex(32),
    "signature": _hex(64),
    "time_ns": _whole,
}

_LINE: dict[str, Check] = {
    "amount": _amount,
    "per": _whole,
    "price": _amount,
    "quantity": _whole,
    "rule": _text,
    "token_class": _text,
    "ttl_class": _text,
}

_RECEIPT: dict[str, Check] = {
    "amount": _amount,
    "corrections": _list(_object({**_ENTRY, "correction": _any_object})),
    "currency": _text,
    "entry": _object(_ENTRY),
    "event": _any_object,
    "format": _whole,
    "issued_time_ns": _whole,
    "key": _hex(8),
    "keys": _list(_object(_KEY)),
    "ledger": _text,
    "lines": _list(_object(_LINE)),
    "marks": _any_object,
    "owed": _amount,
    "price_versions": _list(_any_object),
}
