"""The terms as people write them: a TOML file, checked with file, line and key.

    format = 1
    [[terms]]
    name = "contract 17"
    tenant = "acme"                            # a pattern; a name goes before patterns
    from = 2026-11-01T00:00:00Z                # the beginning of a month
    currency = "CNY"
    decimals = 2                               # optional, default 6
    minimum_charge = "20"                      # optional
      [[terms.allowances]]
      name = "free tokens"
      model = "*"
      meters = ["miss", "output"]
      quantity = 1000000
      [[terms.discounts]]
      name = "volume"
      times = "0.8"                            # what is left of the price
      [[terms.credits]]
      name = "welcome"
      amount = "100"
      from = 2026-11-01T00:00:00Z
      until = 2027-02-01T00:00:00Z             # expiry

Every problem of a file is reported at once. Read once at start; pure otherwise.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from billing.errors import TermsError
from billing.money import ONE, ZERO, parse_factor
from billing.month import month_at
from billing.pattern import covers
from billing.price_card import CACHE_WRITE, METERS
from billing.terms import Allowance, Credit, Discount, Terms, TermsSheet
from billing.toml_file import NO_TIME, FilePath, TomlFile, read_text

__all__ = ["load_terms", "parse_terms"]

FORMAT = 1
DECIMALS = 6
QUANTITY_MAX = 10**15

_KEYS = {
    "name",
    "tenant",
    "from",
    "currency",
    "decimals",
    "minimum_charge",
    "allowances",
    "discounts",
    "credits",
}
_CURRENCY = re.compile(r"[A-Z]{3}")
_USAGE = (*METERS, CACHE_WRITE)
_ALL = (*_USAGE, "storage")

Table = Mapping[str, Any]


def load_terms(path: Path | None) -> TermsSheet:
    """Reads `path`; without one nobody has terms. Raises TermsError."""
    if path is None:
        return TermsSheet()
    return parse_terms(read_text(path, "terms", TermsError), str(path))


def parse_terms(text: str, source: str) -> TermsSheet:
    """The terms in `text`; `source` names it in problems. Raises TermsError with all of them."""
    file = TomlFile(text, source, "terms", TermsError)
    file.only(file.tree, {"format", "terms"}, ())
    if file.tree.get("format") != FORMAT:
        file.note(("format",), f"must be {FORMAT}; this kvtier reads no other")
    read = [_terms(file, each, at) for each, at in file.tables(file.tree, "terms", (), needed=True)]
    known: set[tuple[str, int]] = set()
    for index, terms in enumerate(read):
        key = (terms.tenant_pattern, terms.start_ns)
        if key in known and terms.start_ns != NO_TIME:
            file.note(("terms", index, "from"), f'"{terms.tenant_pattern}" has terms from then on')
        known.add(key)
    file.finish()
    return TermsSheet(tuple(read))


def _terms(file: TomlFile, table: Table, at: FilePath) -> Terms:
    file.only(table, _KEYS, at)
    currency = file.text(table, "currency", at)
    if currency and not _CURRENCY.fullmatch(currency):
        file.note((*at, "currency"), 'must be an ISO 4217 code, for example "CNY"')
    start = file.time(table, "from", at)
    if start != NO_TIME and month_at(start).start_ns != start:
        file.note((*at, "from"), "must be the beginning of a month of UTC")
    return Terms(
        name=file.text(table, "name", at),
        tenant_pattern=file.text(table, "tenant", at),
        start_ns=start,
        currency=currency,
        decimals=file.number(table, "decimals", at, 0, 12, DECIMALS),
        minimum_charge=file.decimal(table, "minimum_charge", at)
        if "minimum_charge" in table
        else ZERO,
        allowances=tuple(_allowances(file, table, at)),
        discounts=_discounts(file, table, at),
        credits=tuple(_credits(file, table, at)),
    )


def _allowances(file: TomlFile, table: Table, at: FilePath) -> Iterator[Allowance]:
    names: list[str] = []
    for each, there in file.tables(table, "allowances", at):
        file.only(each, {"name", "model", "meters", "quantity"}, there)
        name = _name(file, each, there, names)
        meters = _meters(file, each, there, _USAGE)
        if not meters:
            file.note((*there, "meters"), f"must be a list of {', '.join(_USAGE)}")
        quantity = file.number(each, "quantity", there, 1, QUANTITY_MAX, 0)
        yield Allowance(name, _model(file, each, there), meters, quantity)


def _discounts(file: TomlFile, table: Table, at: FilePath) -> tuple[Discount, ...]:
    names: list[str] = []
    found: list[Discount] = []
    for each, there in file.tables(table, "discounts", at):
        file.only(each, {"name", "model", "meters", "times"}, there)
        times = file.decimal(each, "times", there, parse_factor)
        if times >= ONE:
            file.note((*there, "times"), "must be less than 1: it is what is left of the price")
        name, model = _name(file, each, there, names), _model(file, each, there)
        discount = Discount(name, model, _meters(file, each, there, _ALL), times)
        if any(_hides(sooner, discount) for sooner in found):
            file.note(there, f'"{name}" is never reached: see above it')
        found.append(discount)
    return tuple(found)


def _hides(sooner: Discount, later: Discount) -> bool:
    meters = not sooner.meters or (later.meters and set(later.meters) <= set(sooner.meters))
    return bool(meters) and covers(sooner.model_pattern, later.model_pattern)


def _credits(file: TomlFile, table: Table, at: FilePath) -> Iterator[Credit]:
    names: list[str] = []
    for each, there in file.tables(table, "credits", at):
        file.only(each, {"name", "amount", "from", "until", "currency"}, there)
        if each.get("currency", table.get("currency")) != table.get("currency"):
            file.note((*there, "currency"), "mixed currencies: the terms are in another one")
        start, end = file.time(each, "from", there), file.time(each, "until", there)
        if NO_TIME not in (start, end) and end <= start:
            file.note((*there, "until"), "must be later than from")
        amount = file.decimal(each, "amount", there)
        yield Credit(_name(file, each, there, names), amount, start, end)


def _name(file: TomlFile, table: Table, at: FilePath, names: list[str]) -> str:
    name = file.text(table, "name", at)
    if name and name in names:
        file.note((*at, "name"), f'"{name}" is used twice')
    names.append(name)
    return name


def _model(file: TomlFile, table: Table, at: FilePath) -> str:
    return file.text(table, "model", at) if "model" in table else "*"


def _meters(file: TomlFile, table: Table, at: FilePath, known: Sequence[str]) -> tuple[str, ...]:
    """Unknown ones are noted; none where none are named."""
    value = table.get("meters", [])
    if not isinstance(value, list):
        file.note((*at, "meters"), f"must be a list of {', '.join(known)}")
        return ()
    for each in value:
        if each not in known:
            file.note((*at, "meters"), f"{each!r} is no meter; known are {', '.join(known)}")
    return tuple(each for each in value if each in known)
