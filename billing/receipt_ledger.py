"""A receipt against what the ledger's service answers now. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any

from billing.receipt_check import Finding, Result
from kvtier.v1 import usage_pb2

__all__ = ["ledger_finding"]


def ledger_finding(
    receipt: Mapping[str, Any],
    entries: Iterable[usage_pb2.LedgerEntry],
    keys: Iterable[usage_pb2.LedgerKey],
) -> Finding:
    """`entries`: those that the service finds by the request's id."""
    said, request_id = receipt["entry"], receipt["event"]["request_id"]
    found = next((each for each in entries if each.event.request_id == request_id), None)
    if found is None:
        return _failed("entry", "the ledger has no such request")
    if found.position != said["position"]:
        return _failed("entry.position", f"in the ledger it is at {found.position:,}")
    if found.hash.hex() != said["hash"]:
        return _failed("entry.hash", f"in the ledger it is {found.hash.hex()}")
    if found.amount != receipt["amount"] or found.currency_code not in ("", receipt["currency"]):
        return _failed("amount", f"in the ledger it is {found.amount} {found.currency_code}")
    if receipt["key"] not in {key.key_id for key in keys}:
        return _failed("key", "it is none of the ledger's")
    there = {each.correction_id for each in found.corrections}
    for index, each in enumerate(receipt["corrections"]):
        if each["correction"].get("correction_id") not in there:
            return _failed(f"corrections[{index}]", "the ledger has no such correction")
    later = len(found.corrections) - len(receipt["corrections"])
    return Finding(
        "ledger",
        Result.HOLDS,
        "",
        f"{later} corrections were made since: get the receipt again" if later else "",
    )


def _failed(where: str, problem: str) -> Finding:
    return Finding("ledger", Result.FAILED, where, problem)
