"""The price book as people write it: a TOML file, checked with file, line and key.

    format = 2
    [[versions]]
    name = "2024-08"
    effective_time = 2024-08-02T00:00:00Z
    currency = "CNY"
    source = "where the prices come from"
    invoice_decimals = 6                       # optional
      [[versions.prices]]
      model = "*"
      hit = "0.1"                              # text: a float would not be exact
      miss = "1"
      output = "2"

Format 1 has these and `cache_write` of a price; what format 2 has more is in
docs/formats/price_book.md. Every problem of a file is reported at once. Read once at start; pure
otherwise.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import Any

from billing.errors import BookRefusedError, PriceBookError
from billing.price_book import Price, PriceBook, PriceVersion
from billing.price_card_file import read_calendars, read_card, read_windows
from billing.price_check import check_cards, check_times
from billing.toml_file import NO_TIME, FilePath, TomlFile, read_text

__all__ = ["DEFAULT_BOOK", "given_book", "load_price_book", "parse_price_book"]

FORMATS = (1, 2)
INVOICE_DECIMALS = 6
"""A question on a cached document costs fractions of a cent; 2 places would show 0.00."""

GIVEN_CHARACTERS_MAX = 1024 * 1024

DEFAULT_BOOK = "default_prices.toml"

_CURRENCY = re.compile(r"[A-Z]{3}")
_VERSION_KEYS = {"name", "effective_time", "currency", "source", "invoice_decimals", "prices"}
_TIME_KEYS = {"calendars", "windows"}
_PRICE_KEYS = {"model", "hit", "miss", "output", "cache_write"}


def load_price_book(path: Path | None) -> PriceBook:
    """Reads `path`, or the book that ships with kvtier. Raises PriceBookError."""
    if path is None:
        shipped = resources.files("billing").joinpath(DEFAULT_BOOK)
        return parse_price_book(shipped.read_text("utf-8"), DEFAULT_BOOK)
    return parse_price_book(read_text(path, "price book", PriceBookError), str(path))


def given_book(text: str, name: str) -> PriceBook:
    """A book that a caller sent. Raises BookRefusedError."""
    if len(text) > GIVEN_CHARACTERS_MAX:
        raise BookRefusedError(f"the price book is over {GIVEN_CHARACTERS_MAX} characters")
    try:
        return parse_price_book(text, name or "the book")
    except PriceBookError as error:
        raise BookRefusedError(str(error)) from None


def parse_price_book(text: str, source: str) -> PriceBook:
    """The book in `text`; `source` names it in problems. Raises PriceBookError with all of them."""
    file = TomlFile(text, source, "price book", PriceBookError)
    file.only(file.tree, {"format", "versions"}, ())
    format_ = file.tree.get("format")
    if type(format_) is not int or format_ not in FORMATS:
        file.note(("format",), "must be 1 or 2; this kvtier reads no other")
        format_ = max(FORMATS)
    read = [
        _version(file, table, at, format_)
        for table, at in file.tables(file.tree, "versions", (), needed=True)
    ]
    _order(file, read)
    file.finish()
    return PriceBook(tuple(read))


def _order(file: TomlFile, versions: Sequence[PriceVersion]) -> None:
    previous: PriceVersion | None = None
    names: set[str] = set()
    for index, version in enumerate(versions):
        if version.name and version.name in names:
            file.note(("versions", index, "name"), f'"{version.name}" is used twice')
        names.add(version.name)
        if version.effective_time_ns == NO_TIME:
            continue
        if previous and version.effective_time_ns <= previous.effective_time_ns:
            file.note(
                ("versions", index, "effective_time"), "must be later than the version's above it"
            )
        previous = version


def _version(file: TomlFile, table: Mapping[str, Any], at: FilePath, format_: int) -> PriceVersion:
    """What stands in for a value that has a problem is as good as any: the book is not used."""
    file.only(table, _VERSION_KEYS | (_TIME_KEYS if format_ > 1 else set()), at)
    currency = file.text(table, "currency", at)
    if currency and not _CURRENCY.fullmatch(currency):
        file.note((*at, "currency"), 'must be an ISO 4217 code, for example "CNY"')
    version = PriceVersion(
        name=file.text(table, "name", at),
        effective_time_ns=file.time(table, "effective_time", at),
        currency=currency,
        source=file.text(table, "source", at),
        invoice_decimals=file.number(table, "invoice_decimals", at, 0, 12, INVOICE_DECIMALS),
    )
    if format_ == 1:
        return replace(version, prices=_prices(file, table, at))
    return _with_cards(file, table, at, version)


def _with_cards(
    file: TomlFile, table: Mapping[str, Any], at: FilePath, version: PriceVersion
) -> PriceVersion:
    start = version.effective_time_ns
    calendars = read_calendars(file, table, at, start)
    windows = read_windows(file, table, at)
    tables = file.tables(table, "prices", at, needed=True)
    cards = tuple(read_card(file, each, there) for each, there in tables)
    for problems in (
        check_times(calendars, windows, cards),
        check_cards(cards, calendars, windows, start),
    ):
        for path, problem in problems:
            file.note((*at, *path), problem)
    return replace(version, rate_cards=cards, calendars=calendars, windows=windows)


def _prices(file: TomlFile, table: Mapping[str, Any], at: FilePath) -> tuple[Price, ...]:
    prices: list[Price] = []
    for entry, there in file.tables(table, "prices", at, needed=True):
        file.only(entry, _PRICE_KEYS, there)
        model = file.text(entry, "model", there)
        hit, miss, output = (file.decimal(entry, key, there) for key in ("hit", "miss", "output"))
        if any(sooner.model_pattern in ("*", model) for sooner in prices):
            file.note((*there, "model"), f'"{model}" is never reached: see above it')
        prices.append(Price(model, hit, miss, output, _cache_write(file, entry, there)))
    return tuple(prices)


def _cache_write(
    file: TomlFile, entry: Mapping[str, Any], at: FilePath
) -> tuple[tuple[str, Decimal], ...]:
    table, where = entry.get("cache_write", {}), (*at, "cache_write")
    if not isinstance(table, dict):
        file.note(where, 'must be prices by TTL class, for example { "1h" = "0.5" }')
        return ()
    for name in table:
        if not name.isprintable():
            file.note(where, "names a TTL class that is not printable")
    return tuple((name, file.decimal(table, name, where)) for name in sorted(table))
