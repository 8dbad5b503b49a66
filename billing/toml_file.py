"""A TOML file read with its lines: every problem is noted with file, line and key, none hides
another.

Used once per file, by one thread. `tomllib` keeps no lines; they are found again by headers and
keys, and what cannot be placed has its table's.
"""

import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from billing.errors import BillingError
from billing.money import ZERO, parse_price

__all__ = ["NO_TIME", "FilePath", "TomlFile", "read_text"]

FilePath = tuple[str | int, ...]
"""Of a key: ("versions", 0, "prices", 1, "hit")."""

NO_TIME = -1
"""In place of a time that has a problem."""

Choice = TypeVar("Choice", bound=Enum)

_TIME_HELP = "must be a time with its zone and no quotes, for example 2024-08-02T00:00:00Z"
_YEAR_MAX = 2200


def read_text(path: Path, what: str, error: type[BillingError]) -> str:
    """The text of a file; `what` it is, and what to raise when it cannot be read."""
    try:
        return path.read_text("utf-8")
    except OSError as problem:
        raise error(f"cannot read {what} {path}: {problem.strerror}") from None
    except UnicodeDecodeError:
        raise error(f"{what} {path} is not UTF-8 text") from None


class TomlFile:
    """The tree of a file and the problems found in it so far."""

    def __init__(self, text: str, source: str, what: str, error: type[BillingError]) -> None:
        """`source` names the file in problems. Raises `error` when it is not TOML."""
        self._source = source
        self._what = what
        self._error = error
        try:
            self.tree: dict[str, Any] = tomllib.loads(text)
        except tomllib.TOMLDecodeError as problem:
            raise error(f"{what} {source} is not TOML: {problem}") from None
        except RecursionError:
            raise error(f"{what} {source} is nested too deeply") from None
        self._lines = _line_numbers(text)
        self.problems: list[str] = []

    def finish(self) -> None:
        """Raises with all problems, when there are any."""
        if self.problems:
            listed = "\n".join(f"  {self._source}{problem}" for problem in self.problems)
            raise self._error(f"the {self._what} is not usable:\n{listed}")

    def note(self, at: FilePath, problem: str) -> None:
        places = (at[:n] for n in range(len(at), 0, -1))
        line = next((self._lines[place] for place in places if place in self._lines), 0)
        place = f":{line}" if line else ""
        self.problems.append(f"{place}: {_spell(at)}: {problem}")

    def only(self, table: Mapping[str, Any], known: Collection[str], at: FilePath) -> None:
        for key in sorted(table.keys() - known):
            self.note((*at, key), f"is not a key here; known are {', '.join(sorted(known))}")

    def tables(
        self, table: Mapping[str, Any], key: str, at: FilePath, needed: bool = False
    ) -> list[tuple[dict[str, Any], FilePath]]:
        """The tables of an array, each with its path; problems of those that are none are noted."""
        found = table.get(key, [])
        header = ".".join(str(part) for part in (*at, key) if isinstance(part, str))
        if not isinstance(found, list) or (needed and not found):
            self.note((*at, key), f"must be one or more [[{header}]] tables")
            return []
        tables = []
        for index, each in enumerate(found):
            if isinstance(each, dict):
                tables.append((each, (*at, key, index)))
            else:
                self.note((*at, key, index), f"must be a [[{header}]] table")
        return tables

    def text(self, table: Mapping[str, Any], key: str, at: FilePath) -> str:
        value = table.get(key)
        if not isinstance(value, str) or not value or not value.isprintable():
            self.note((*at, key), "must be printable text that is not empty")
            return ""
        return value

    def number(
        self, table: Mapping[str, Any], key: str, at: FilePath, low: int, high: int, default: int
    ) -> int:
        value = table.get(key, default)
        if type(value) is not int or not low <= value <= high:
            self.note((*at, key), f"must be a whole number from {low} to {high}")
            return default
        return value

    def choice(self, table: Mapping[str, Any], key: str, at: FilePath, default: Choice) -> Choice:
        value = table.get(key, default.value)
        for each in type(default):
            if each.value == value:
                return each
        known = ", ".join(f'"{each.value}"' for each in type(default))
        self.note((*at, key), f"must be one of {known}")
        return default

    def decimal(
        self,
        table: Mapping[str, Any],
        key: str,
        at: FilePath,
        parse: Callable[[str], Decimal] = parse_price,
    ) -> Decimal:
        value = table.get(key)
        if isinstance(value, float):
            self.note((*at, key), f'{value} is a float, which is not exact; write "{value}"')
        elif not isinstance(value, str):
            self.note((*at, key), 'must be a price as text, for example "0.1"')
        else:
            try:
                return parse(value)
            except ValueError as error:
                self.note((*at, key), str(error))
        return ZERO

    def time(self, table: Mapping[str, Any], key: str, at: FilePath) -> int:
        """Nanoseconds since 1970 UTC; NO_TIME with a problem."""
        value = table.get(key)
        if not isinstance(value, datetime) or value.tzinfo is None:
            self.note((*at, key), _TIME_HELP)
            return NO_TIME
        since = value - datetime(1970, 1, 1, tzinfo=UTC)
        if since.days < 0:
            self.note((*at, key), "must not be before 1970")
            return NO_TIME
        if value.year > _YEAR_MAX:
            self.note((*at, key), f"must not be after {_YEAR_MAX}")
            return NO_TIME
        return (since.days * 86_400 + since.seconds) * 10**9 + since.microseconds * 1_000


def _spell(at: FilePath) -> str:
    """("versions", 0, "prices", 1, "hit") as "versions[1].prices[2].hit"; people count from 1."""
    text = ""
    for part in at:
        text += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "file"


_HEADER = re.compile(r"\s*(\[\[?)\s*([\w.\-]+)\s*\]")
_KEY = re.compile(r"\s*([\w\-]+)\s*=")


def _line_numbers(text: str) -> dict[FilePath, int]:
    """Line of each table and key."""
    lines: dict[FilePath, int] = {}
    last: dict[FilePath, int] = {}
    """Of each array of tables, the place of its last one."""
    here: FilePath = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            here = ()
            *parents, name = header[2].split(".")
            for parent in parents:
                here = (*here, parent)
                here = (*here, last[here]) if here in last else here
            here = (*here, name)
            if header[1] == "[[":
                last[here] = last.get(here, -1) + 1
                here = (*here, last[here])
            lines.setdefault(here, number)
        elif key := _KEY.match(line):
            lines.setdefault((*here, key[1]), number)
    return lines
