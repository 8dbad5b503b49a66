"""The tables of a price book of format 2: cards, windows, calendars (docs/formats/price_book.md).

Reads what is written and notes what cannot be meant alone; what does not fit together is found by
`price_check`. Used once per file, by one thread.
"""

import re
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from billing.calendar import DAY_NAMES, DAY_SECONDS, Calendar, Window, offsets_of
from billing.money import ONE, UNIT_TOKENS, parse_factor
from billing.price_card import (
    CACHE_WRITE,
    METERS,
    RELATIVE_TO,
    Change,
    ClassRule,
    HitRule,
    Promotion,
    Rate,
    RateCard,
    Step,
    StepsApply,
    StorageMeter,
    StorageRate,
    WindowRule,
    WriteMode,
)
from billing.toml_file import FilePath, TomlFile

__all__ = ["read_calendars", "read_card", "read_windows"]

TOKENS_MAX = 10**10
PER_MAX = 10**12

_RATE_KEYS = {*METERS, CACHE_WRITE}
_CHANGE_KEYS = {*_RATE_KEYS, "times"}
_CARD_KEYS = {
    *_RATE_KEYS,
    "model",
    "per",
    "cache_write_mode",
    "minimum_prompt_tokens",
    "minimum_hit_tokens",
    "hit_step_tokens",
    "round_up_tokens",
    "steps",
    "steps_apply",
    "windows",
    "classes",
    "promotions",
    "storage",
    "quota",
}
_NEEDED = ("hit", "miss", "output")
_HOURS = re.compile(r"([01][0-9]|2[0-4]):([0-5][0-9])-([01][0-9]|2[0-4]):([0-5][0-9])")

Table = Mapping[str, Any]


def read_card(file: TomlFile, table: Table, at: FilePath) -> RateCard:
    if "currency" in table:
        file.note(
            (*at, "currency"), "mixed currencies: a version has one, and its prices have none"
        )
    file.only(table, _CARD_KEYS | {"currency"}, at)
    base = _base(file, table, at)
    return RateCard(
        model_pattern=file.text(table, "model", at),
        base=base,
        per=_per(file, table, at),
        cache_write_mode=file.choice(table, "cache_write_mode", at, WriteMode.ON_TOP),
        hits=HitRule(
            file.number(table, "minimum_prompt_tokens", at, 0, TOKENS_MAX, 0),
            file.number(table, "minimum_hit_tokens", at, 0, TOKENS_MAX, 0),
            file.number(table, "hit_step_tokens", at, 1, TOKENS_MAX, 1),
        ),
        round_up_tokens=file.number(table, "round_up_tokens", at, 1, TOKENS_MAX, 1),
        steps=_steps(file, table, at, base),
        steps_apply=file.choice(table, "steps_apply", at, StepsApply.REQUEST),
        windows=tuple(
            WindowRule(file.text(each, "window", there), change)
            for each, there, change in _layers(file, table, "windows", at, base, {"window"})
        ),
        classes=tuple(
            ClassRule(file.text(each, "class", there), change)
            for each, there, change in _layers(file, table, "classes", at, base, {"class"})
        ),
        promotions=tuple(
            Promotion(
                file.text(each, "name", there),
                file.time(each, "from", there),
                file.time(each, "until", there),
                change,
            )
            for each, there, change in _layers(
                file, table, "promotions", at, base, {"name", "from", "until"}
            )
        ),
        storage=_storage(file, table, at),
        quota=_quota(file, table, at),
    )


def read_calendars(
    file: TomlFile, table: Table, at: FilePath, effective_time_ns: int
) -> tuple[Calendar, ...]:
    found = []
    for each, there in file.tables(table, "calendars", at):
        file.only(each, {"name", "zone", "holidays", "workdays"}, there)
        zone = file.text(each, "zone", there)
        offsets: tuple[tuple[int, int], ...] = ()
        try:
            offsets = offsets_of(zone, max(effective_time_ns, 0)) if zone else ()
        except ValueError as error:
            file.note((*there, "zone"), str(error))
        holidays, workdays = (_dates(file, each, key, there) for key in ("holidays", "workdays"))
        found.append(Calendar(file.text(each, "name", there), zone, offsets, holidays, workdays))
    return tuple(found)


def read_windows(file: TomlFile, table: Table, at: FilePath) -> tuple[Window, ...]:
    found = []
    for each, there in file.tables(table, "windows", at):
        file.only(each, {"name", "calendar", "days", "hours"}, there)
        days = each.get("days", ["workday", "offday"])
        if not isinstance(days, list) or not days or any(day not in DAY_NAMES for day in days):
            file.note((*there, "days"), f"must be a list of {', '.join(DAY_NAMES)}")
            days = []
        hours = each.get("hours", ["00:00-24:00"])
        if not isinstance(hours, list) or not hours:
            file.note((*there, "hours"), 'must be a list, for example ["09:00-12:30"]')
            hours = []
        spans = tuple(_span(file, text, (*there, "hours")) for text in hours)
        name, calendar = (file.text(each, key, there) for key in ("name", "calendar"))
        found.append(Window(name, calendar, tuple(days), spans))
    return tuple(found)


def _base(file: TomlFile, table: Table, at: FilePath) -> Change:
    for meter in _NEEDED:
        if meter not in table:
            file.note((*at, meter), 'must be a price as text, for example "0.1"')
    rates = _rates(file, table, at)
    for meter, rate in rates:
        if rate.price is None and not rate.of:
            file.note((*at, meter), 'say times of what: { times = "0.1", of = "miss" }')
    return Change(rates)


def _steps(file: TomlFile, table: Table, at: FilePath, base: Change) -> tuple[Step, ...]:
    keys = {"prompt_above", "output_above"}
    return tuple(
        Step(
            file.number(each, "prompt_above", there, 0, TOKENS_MAX, 0),
            file.number(each, "output_above", there, 0, TOKENS_MAX, 0),
            change,
        )
        for each, there, change in _layers(file, table, "steps", at, base, keys)
    )


def _layers(
    file: TomlFile, table: Table, key: str, at: FilePath, base: Change, more: set[str]
) -> list[tuple[dict[str, Any], FilePath, Change]]:
    """(table, path, change) of each table of a kind of layer, whose keys are also `more`."""
    known = {meter for meter, _ in base.rates}
    found = []
    for each, there in file.tables(table, key, at):
        file.only(each, _CHANGE_KEYS | more, there)
        rates = _rates(file, each, there)
        for meter, _ in rates:
            if meter not in known:
                file.note((*there, meter), "has no base rate that this could change")
        times = file.decimal(each, "times", there, parse_factor) if "times" in each else ONE
        if not rates and times == ONE:
            file.note(there, "changes nothing: give rates, or times")
        found.append((each, there, Change(rates, times)))
    return found


def _rates(file: TomlFile, table: Table, at: FilePath) -> tuple[tuple[str, Rate], ...]:
    rates = {meter: _rate(file, table, meter, at) for meter in METERS if meter in table}
    writes, where = table.get(CACHE_WRITE, {}), (*at, CACHE_WRITE)
    if not isinstance(writes, dict):
        file.note(where, 'must be prices by TTL class, for example { "1h" = "0.5" }')
        writes = {}
    for name in writes:
        if not name.isprintable():
            file.note(where, "names a TTL class that is not printable")
        rates[f"{CACHE_WRITE}:{name}"] = _rate(file, writes, name, where)
    return tuple(sorted(rates.items()))


def _rate(file: TomlFile, table: Table, key: str, at: FilePath) -> Rate:
    value = table[key]
    if not isinstance(value, dict):
        return Rate(file.decimal(table, key, at))
    where = (*at, key)
    file.only(value, {"times", "of"}, where)
    times = file.decimal(value, "times", where, parse_factor)
    of = value.get("of", "")
    if of and (of not in RELATIVE_TO or key in RELATIVE_TO):
        file.note(where, 'only other rates than these may be times "miss" or "output"')
        of = ""
    return Rate(None, times, of)


def _per(file: TomlFile, table: Table, at: FilePath) -> int:
    per = file.number(table, "per", at, 1, PER_MAX, UNIT_TOKENS)
    if str(per).strip("0") != "1":
        file.note((*at, "per"), "must be a power of ten, so that dividing by it is exact")
        return UNIT_TOKENS
    return per


def _storage(file: TomlFile, table: Table, at: FilePath) -> StorageRate | None:
    value, where = table.get("storage"), (*at, "storage")
    if value is None:
        return None
    if not isinstance(value, dict):
        file.note(where, 'must be { price = "1", meter = "exact_seconds" }')
        return None
    file.only(value, {"price", "meter"}, where)
    price = file.decimal(value, "price", where)
    return StorageRate(price, file.choice(value, "meter", where, StorageMeter.EXACT_SECONDS))


def _quota(file: TomlFile, table: Table, at: FilePath) -> tuple[tuple[str, Decimal], ...]:
    value, where = table.get("quota", {}), (*at, "quota")
    if not isinstance(value, dict):
        file.note(where, 'must be weights, for example { hit = "0.1" }')
        return ()
    file.only(value, _RATE_KEYS, where)
    known = [key for key in sorted(value) if key in _RATE_KEYS]
    return tuple((key, file.decimal(value, key, where, parse_factor)) for key in known)


def _dates(file: TomlFile, table: Table, key: str, at: FilePath) -> tuple[date, ...]:
    value = table.get(key, [])
    days = isinstance(value, list) and all(
        isinstance(each, date) and not isinstance(each, datetime) for each in value
    )
    if not days:
        file.note((*at, key), "must be a list of days without quotes, for example [2026-10-01]")
        return ()
    if len(set(value)) != len(value):
        file.note((*at, key), "names a day twice")
    return tuple(sorted(value))


def _span(file: TomlFile, text: Any, at: FilePath) -> tuple[int, int]:
    found = _HOURS.fullmatch(text) if isinstance(text, str) else None
    start, end = (0, 0)
    if found is not None:
        from_h, from_m, to_h, to_m = map(int, found.groups())
        start, end = from_h * 3600 + from_m * 60, to_h * 3600 + to_m * 60
    if found is None or start >= DAY_SECONDS or end > DAY_SECONDS or start == end:
        file.note(at, f'{text!r} must be hours as "09:00-12:30", to "24:00" or past midnight')
        return (0, DAY_SECONDS)
    return (start, end if end > start else end + DAY_SECONDS)
