"""Corrections in a receipt: each follows from the entry that it corrects. Pure."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from billing.correcting import amount_asked
from billing.correction import (
    Correction,
    CorrectionKind,
    correction_from_text,
    plain_postings,
)
from billing.entry import Entry, EntryHash
from billing.money import EXACT, ZERO, to_text
from billing.price_book import PriceId, PriceVersion
from billing.rating import Posting, rate
from billing.receipt import canonical
from billing.usage import UsageEvent

__all__ = ["corrections_problem"]

Problem = tuple[str, str]
"""Where, and what."""


def corrections_problem(
    receipt: Mapping[str, Any], event: UsageEvent, versions: Mapping[PriceId, PriceVersion]
) -> Problem | None:
    """The first that does not hold; None: all do, and add up to what is owed."""
    before = receipt["entry"]
    currency, owed = "", Decimal(receipt["amount"])
    if before["price"] is not None:
        currency = versions[before["price"]].currency
    for index, said in enumerate(receipt["corrections"]):
        where = f"corrections[{index}]"
        if said["position"] <= before["position"]:
            return f"{where}.position", "is not behind that of the entry before"
        follows = said["position"] == before["position"] + 1
        if follows and said["previous_hash"] != before["hash"]:
            return f"{where}.previous_hash", "is not the hash of the entry before it"
        try:
            correction = correction_from_text(canonical({"correction": said["correction"]}))
        except (ValueError, ArithmeticError, AttributeError, KeyError, TypeError) as error:
            return f"{where}.correction", str(error)
        problem = _problem(receipt, said, correction, (currency, owed), event, versions)
        if problem is not None:
            return f"{where}.{problem[0]}", problem[1]
        before, currency = said, correction.currency
        owed = EXACT.add(owed, correction.amount)
    if receipt["owed"] != to_text(owed):
        return "owed", f"is {receipt['owed']}, and amount and corrections are {to_text(owed)}"
    return None


def _problem(
    receipt: Mapping[str, Any],
    said: Mapping[str, Any],
    correction: Correction,
    owed: tuple[str, Decimal],
    event: UsageEvent,
    versions: Mapping[PriceId, PriceVersion],
) -> Problem | None:
    of = (receipt["entry"]["position"], event.request_id, event.tenant_id, said["recorded_time_ns"])
    its = (correction.corrects, correction.ask.request_id, correction.tenant_id, correction.time_ns)
    if its != of:
        return "correction", "it is not of this entry"
    currency, amount = owed
    postings: tuple[Posting, ...]
    follows: Decimal | None
    if correction.ask.kind is CorrectionKind.SETTLE:
        if said["price"] is None or currency:
            return "price", "it settles an entry that had a price"
        postings = rate(event, versions[said["price"]])
        follows, named = (
            (postings[0].amount if postings else ZERO),
            versions[said["price"]].currency,
        )
    else:
        if said["price"] is not None:
            return "price", "only a settlement has one"
        postings, named = plain_postings(correction), currency
        follows = amount_asked(correction.ask, amount)
    if follows is None:
        return "correction", f"it gives back more than the {to_text(amount)} that were owed"
    if correction.amount != follows:
        return "correction", f"its amount is {to_text(correction.amount)}, not {to_text(follows)}"
    if correction.currency != named:
        return "correction", "it is not in the currency of its entry"
    entry = Entry(
        said["position"],
        said["recorded_time_ns"],
        canonical({"correction": said["correction"]}),
        said["price"],
        postings,
    )
    if entry.hash_after(EntryHash(bytes.fromhex(said["previous_hash"]))).hex() != said["hash"]:
        return "hash", "does not follow from the correction and the hash before it"
    return None
