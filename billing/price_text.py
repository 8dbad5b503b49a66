"""Canonical text of a price version of format 2: one line of ASCII JSON, and back.

    {"calendars":[...],"cards":[...],"currency":"CNY","effective_time_ns":0,"format":2,
     "invoice_decimals":6,"name":"...","source":"...","windows":[...]}                    (one line)

Keys in alphabetical order; what has its default is left out. Frozen: the text's hash names the
version, and ledgers keep it (docs/formats/ledger.md). Invariant: text -> data -> text gives the
same bytes or ValueError. Pure, any thread.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from typing import Any

from billing.calendar import Calendar, Window
from billing.money import ONE, UNIT_TOKENS, to_text
from billing.price_card import (
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

__all__ = ["FORMAT", "canonical", "card_data", "card_of_data", "time_data", "time_of_data", "whole"]

FORMAT = 2

Data = dict[str, Any]


def canonical(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, separators=(",", ":"), sort_keys=True, ensure_ascii=True)


def time_data(calendars: Sequence[Calendar], windows: Sequence[Window]) -> Data:
    return {
        "calendars": [
            {
                "holidays": [day.isoformat() for day in calendar.holidays],
                "name": calendar.name,
                "offsets": [list(offset) for offset in calendar.offsets],
                "workdays": [day.isoformat() for day in calendar.workdays],
                "zone": calendar.zone,
            }
            for calendar in calendars
        ],
        "windows": [
            {
                "calendar": window.calendar,
                "days": list(window.days),
                "hours": [list(hours) for hours in window.hours],
                "name": window.name,
            }
            for window in windows
        ],
    }


def time_of_data(fields: Mapping[str, Any]) -> tuple[tuple[Calendar, ...], tuple[Window, ...]]:
    calendars = tuple(
        Calendar(
            name=each["name"],
            zone=each["zone"],
            offsets=tuple((whole(at), whole(east)) for at, east in each["offsets"]),
            holidays=tuple(map(date.fromisoformat, each["holidays"])),
            workdays=tuple(map(date.fromisoformat, each["workdays"])),
        )
        for each in fields["calendars"]
    )
    windows = tuple(
        Window(
            name=each["name"],
            calendar=each["calendar"],
            days=tuple(each["days"]),
            hours=tuple((whole(start), whole(end)) for start, end in each["hours"]),
        )
        for each in fields["windows"]
    )
    return calendars, windows


def card_data(card: RateCard) -> Data:
    data: Data = {"base": _change_data(card.base), "model": card.model_pattern}
    if card.per != UNIT_TOKENS:
        data["per"] = card.per
    if card.cache_write_mode is not WriteMode.ON_TOP:
        data["cache_write_mode"] = card.cache_write_mode.value
    if card.hits != HitRule():
        data["hits"] = [
            card.hits.minimum_prompt_tokens,
            card.hits.minimum_hit_tokens,
            card.hits.step_tokens,
        ]
    if card.round_up_tokens != 1:
        data["round_up_tokens"] = card.round_up_tokens
    if card.steps_apply is not StepsApply.REQUEST:
        data["steps_apply"] = card.steps_apply.value
    data |= _layers_data(card)
    if card.storage is not None:
        data["storage"] = [to_text(card.storage.price), card.storage.meter.value]
    if card.quota:
        data["quota"] = [[meter, to_text(weight)] for meter, weight in card.quota]
    return data


def card_of_data(data: Mapping[str, Any]) -> RateCard:
    storage = data.get("storage")
    return RateCard(
        model_pattern=data["model"],
        base=_change_of(data["base"]),
        per=whole(data.get("per", UNIT_TOKENS)),
        cache_write_mode=WriteMode(data.get("cache_write_mode", WriteMode.ON_TOP.value)),
        hits=HitRule(*map(whole, data.get("hits", ()))),
        round_up_tokens=whole(data.get("round_up_tokens", 1)),
        steps=tuple(Step(whole(p), whole(o), _change_of(c)) for p, o, c in data.get("steps", ())),
        steps_apply=StepsApply(data.get("steps_apply", StepsApply.REQUEST.value)),
        windows=tuple(WindowRule(n, _change_of(c)) for n, c in data.get("windows", ())),
        classes=tuple(ClassRule(n, _change_of(c)) for n, c in data.get("classes", ())),
        promotions=tuple(
            Promotion(name, whole(start), whole(end), _change_of(change))
            for name, start, end, change in data.get("promotions", ())
        ),
        storage=StorageRate(_number(storage[0]), StorageMeter(storage[1])) if storage else None,
        quota=tuple((meter, _number(weight)) for meter, weight in data.get("quota", ())),
    )


def _layers_data(card: RateCard) -> Data:
    layers: Data = {
        "steps": [[s.prompt_above, s.output_above, _change_data(s.change)] for s in card.steps],
        "windows": [[w.window, _change_data(w.change)] for w in card.windows],
        "classes": [[c.service_class, _change_data(c.change)] for c in card.classes],
        "promotions": [
            [p.name, p.start_ns, p.end_ns, _change_data(p.change)] for p in card.promotions
        ],
    }
    return {name: each for name, each in layers.items() if each}


def _change_data(change: Change) -> Data:
    data: Data = {"rates": {meter: _rate_data(rate) for meter, rate in change.rates}}
    if change.times != ONE:
        data["times"] = to_text(change.times)
    return data


def _change_of(data: Mapping[str, Any]) -> Change:
    rates = tuple((meter, _rate_of(rate)) for meter, rate in sorted(data["rates"].items()))
    return Change(rates, _number(data.get("times", "1")))


def _rate_data(rate: Rate) -> str | list[str]:
    return to_text(rate.price) if rate.price is not None else [to_text(rate.times), rate.of]


def _rate_of(data: Any) -> Rate:
    if isinstance(data, str):
        return Rate(_number(data))
    times, of = data
    return Rate(None, _number(times), of)


def whole(value: Any) -> int:
    """`value`, when it is a whole number. Raises TypeError."""
    if type(value) is not int:
        raise TypeError(f"{value!r} is not a whole number")
    return value


def _number(text: Any) -> Decimal:
    """Bounds are the file's matter; that it is the canonical spelling is proved by the whole."""
    if not isinstance(text, str):
        raise TypeError(f"{text!r} is not a number as text")
    number = Decimal(text)
    if not number.is_finite():
        raise ValueError(f"{text} is not a number")
    return number
