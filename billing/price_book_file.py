"""The price book as people write it: a TOML file, checked with file, line and key.

    format = 1
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
      cache_write = { "1h" = "0.5", "*" = "0.25" }    # optional, by TTL class

Every problem of a file is reported at once. Read once at start; pure otherwise.
"""

import re
import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import Any

from billing.errors import PriceBookError
from billing.money import ZERO, parse_price
from billing.price_book import Price, PriceBook, PriceVersion

__all__ = ["DEFAULT_BOOK", "load_price_book", "parse_price_book"]

FORMAT = 1
INVOICE_DECIMALS = 6
"""A question on a cached document costs fractions of a cent; 2 places would show 0.00."""

DEFAULT_BOOK = "default_prices.toml"

_CURRENCY = re.compile(r"[A-Z]{3}")
_VERSION_KEYS = {"name", "effective_time", "currency", "source", "invoice_decimals", "prices"}
_PRICE_KEYS = {"model", "hit", "miss", "output", "cache_write"}

Path_ = tuple[str | int, ...]


def load_price_book(path: Path | None) -> PriceBook:
    """Reads `path`, or the book that ships with kvtier. Raises PriceBookError."""
    if path is None:
        shipped = resources.files("billing").joinpath(DEFAULT_BOOK)
        return parse_price_book(shipped.read_text("utf-8"), DEFAULT_BOOK)
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise PriceBookError(f"cannot read price book {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise PriceBookError(f"price book {path} is not UTF-8 text") from None
    return parse_price_book(text, str(path))


def parse_price_book(text: str, source: str) -> PriceBook:
    """The book in `text`; `source` names it in problems. Raises PriceBookError with all of them."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PriceBookError(f"price book {source} is not TOML: {error}") from None
    except RecursionError:
        raise PriceBookError(f"price book {source} is nested too deeply") from None
    reader = _Reader(_line_numbers(text))
    book = reader.book(tree)
    if reader.problems or book is None:
        listed = "\n".join(f"  {source}{problem}" for problem in reader.problems)
        raise PriceBookError(f"the price book is not usable:\n{listed}")
    return book


class _Reader:
    """One pass over a parsed file; collects problems. Used once, by one thread."""

    def __init__(self, lines: Mapping[Path_, int]) -> None:
        self._lines = lines
        self.problems: list[str] = []

    def book(self, tree: Mapping[str, Any]) -> PriceBook | None:
        self._only(tree, {"format", "versions"}, ())
        if tree.get("format") != FORMAT:
            self._note(("format",), f"must be {FORMAT}; this kvtier reads no other")
        tables = tree.get("versions")
        if not isinstance(tables, list) or not tables:
            self._note(("versions",), "must be one or more [[versions]] tables")
            return None
        read = [self._version(table, ("versions", i)) for i, table in enumerate(tables)]
        self._order(read)
        versions = [version for version in read if version is not None]
        return None if self.problems else PriceBook(tuple(versions))

    def _order(self, versions: list[PriceVersion | None]) -> None:
        previous: PriceVersion | None = None
        names: set[str] = set()
        for index, version in enumerate(versions):
            if version is None:
                continue
            if version.name in names:
                self._note(("versions", index, "name"), f'"{version.name}" is used twice')
            names.add(version.name)
            if previous and version.effective_time_ns <= previous.effective_time_ns:
                self._note(
                    ("versions", index, "effective_time"),
                    "must be later than the version's above it",
                )
            previous = version

    def _version(self, table: Any, at: Path_) -> PriceVersion | None:
        if not isinstance(table, dict):
            self._note(at, "must be a [[versions]] table")
            return None
        before = len(self.problems)
        self._only(table, _VERSION_KEYS, at)
        name = self._text(table, "name", at)
        source = self._text(table, "source", at)
        currency = self._text(table, "currency", at)
        if currency and not _CURRENCY.fullmatch(currency):
            self._note((*at, "currency"), 'must be an ISO 4217 code, for example "CNY"')
        start = self._time(table, at)
        decimals = table.get("invoice_decimals", INVOICE_DECIMALS)
        if type(decimals) is not int or not 0 <= decimals <= 12:
            self._note((*at, "invoice_decimals"), "must be a whole number from 0 to 12")
        prices = self._prices(table, at)
        if len(self.problems) > before:
            return None
        return PriceVersion(name, start, currency, source, decimals, prices)

    def _prices(self, table: Mapping[str, Any], at: Path_) -> tuple[Price, ...]:
        tables = table.get("prices")
        if not isinstance(tables, list) or not tables:
            self._note((*at, "prices"), "must be one or more [[versions.prices]] tables")
            return ()
        prices: list[Price] = []
        for index, entry in enumerate(tables):
            where = (*at, "prices", index)
            if not isinstance(entry, dict):
                self._note(where, "must be a [[versions.prices]] table")
                continue
            price = self._price(entry, where)
            if any(sooner.model_pattern in ("*", price.model_pattern) for sooner in prices):
                self._note(
                    (*where, "model"), f'"{price.model_pattern}" is never reached: see above it'
                )
            prices.append(price)
        return tuple(prices)

    def _price(self, entry: Mapping[str, Any], at: Path_) -> Price:
        self._only(entry, _PRICE_KEYS, at)
        model = self._text(entry, "model", at)
        hit, miss, output = (self._money(entry, key, at) for key in ("hit", "miss", "output"))
        return Price(model, hit, miss, output, self._cache_write(entry, at))

    def _cache_write(self, entry: Mapping[str, Any], at: Path_) -> tuple[tuple[str, Decimal], ...]:
        table, where = entry.get("cache_write", {}), (*at, "cache_write")
        if not isinstance(table, dict):
            self._note(where, 'must be prices by TTL class, for example { "1h" = "0.5" }')
            return ()
        for name in table:
            if not name.isprintable():
                self._note(where, "names a TTL class that is not printable")
        return tuple((name, self._money(table, name, where)) for name in sorted(table))

    def _money(self, entry: Mapping[str, Any], key: str, at: Path_) -> Decimal:
        value = entry.get(key)
        if isinstance(value, float):
            self._note((*at, key), f'{value} is a float, which is not exact; write "{value}"')
        elif not isinstance(value, str):
            self._note((*at, key), 'must be a price as text, for example "0.1"')
        else:
            try:
                return parse_price(value)
            except ValueError as error:
                self._note((*at, key), str(error))
        return ZERO

    def _time(self, table: Mapping[str, Any], at: Path_) -> int:
        value = table.get("effective_time")
        if not isinstance(value, datetime) or value.tzinfo is None:
            self._note(
                (*at, "effective_time"),
                "must be a time with its zone and no quotes, for example 2024-08-02T00:00:00Z",
            )
            return 0
        if value.year < 1970:
            self._note((*at, "effective_time"), "must not be before 1970")
            return 0
        since = value - datetime(1970, 1, 1, tzinfo=UTC)
        return (since.days * 86_400 + since.seconds) * 10**9 + since.microseconds * 1_000

    def _text(self, table: Mapping[str, Any], key: str, at: Path_) -> str:
        value = table.get(key)
        if not isinstance(value, str) or not value or not value.isprintable():
            self._note((*at, key), "must be printable text that is not empty")
            return ""
        return value

    def _only(self, table: Mapping[str, Any], known: set[str], at: Path_) -> None:
        for key in table.keys() - known:
            self._note((*at, key), f"is not a key here; known are {', '.join(sorted(known))}")

    def _note(self, at: Path_, problem: str) -> None:
        line = next(
            (self._lines[at[:n]] for n in range(len(at), 0, -1) if at[:n] in self._lines), 0
        )
        place = f":{line}" if line else ""
        self.problems.append(f"{place}: {_spell(at)}: {problem}")


def _spell(at: Path_) -> str:
    """("versions", 0, "prices", 1, "hit") as "versions[1].prices[2].hit"; people count from 1."""
    text = ""
    for part in at:
        text += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "file"


_HEADER = re.compile(r"\s*\[\[?\s*([\w.\-]+)\s*\]?\]")
_KEY = re.compile(r"\s*([\w\-]+)\s*=")


def _line_numbers(text: str) -> dict[Path_, int]:
    """Line of each table and key. `tomllib` keeps none; keys it cannot place get their table's."""
    lines: dict[Path_, int] = {}
    counts = {"versions": -1, "prices": -1}
    here: Path_ = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            if header[1] == "versions":
                counts = {"versions": counts["versions"] + 1, "prices": -1}
                here = ("versions", counts["versions"])
            elif header[1] == "versions.prices":
                counts["prices"] += 1
                here = ("versions", counts["versions"], "prices", counts["prices"])
            else:
                here = (header[1],)
            lines.setdefault(here, number)
        elif key := _KEY.match(line):
            lines.setdefault((*here, key[1]), number)
    return lines
