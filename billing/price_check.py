"""What does not fit together in a version of format 2, though each part of it can be read.

A rule that can never hold, or two that hold at once, is somebody's mistake: it is found before the
book is used, not on an invoice. Pure, any thread.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise

from billing.calendar import Calendar, Window, overlap
from billing.pattern import covers
from billing.price_card import RateCard, StepsApply
from billing.toml_file import NO_TIME, FilePath

__all__ = ["Problem", "check_cards", "check_times"]

Problem = tuple[FilePath, str]
"""Where, relative to the version, and what."""


def check_times(
    calendars: Sequence[Calendar], windows: Sequence[Window], cards: Sequence[RateCard]
) -> Iterator[Problem]:
    yield from _twice([each.name for each in calendars], "calendars", "name")
    yield from _twice([each.name for each in windows], "windows", "name")
    for index, calendar in enumerate(calendars):
        both = sorted(set(calendar.holidays) & set(calendar.workdays))
        if both:
            yield ("calendars", index, "workdays"), f"{both[0]} is a holiday as well"
        if not any(window.calendar == calendar.name for window in windows):
            yield ("calendars", index), f'"{calendar.name}" is used by no window'
    names = {calendar.name for calendar in calendars}
    used = {rule.window for card in cards for rule in card.windows}
    for index, window in enumerate(windows):
        if window.calendar and window.calendar not in names:
            yield ("windows", index, "calendar"), f'there is no calendar "{window.calendar}"'
        if window.name not in used:
            yield ("windows", index), f'"{window.name}" is used by no price'


def check_cards(
    cards: Sequence[RateCard],
    calendars: Sequence[Calendar],
    windows: Sequence[Window],
    effective_time_ns: int,
) -> Iterator[Problem]:
    for index, card in enumerate(cards):
        at: FilePath = ("prices", index)
        if any(covers(sooner.model_pattern, card.model_pattern) for sooner in cards[:index]):
            yield (*at, "model"), f'"{card.model_pattern}" is never reached: see above it'
        problems = (
            *_windows(card, calendars, windows),
            *_steps(card),
            *_twice([each.service_class for each in card.classes], "classes", "class"),
            *_promotions(card, effective_time_ns),
        )
        for path, problem in problems:
            yield (*at, *path), problem


def _windows(
    card: RateCard, calendars: Sequence[Calendar], windows: Sequence[Window]
) -> Iterator[Problem]:
    yield from _twice([rule.window for rule in card.windows], "windows", "window")
    by_name = {window.name: window for window in windows}
    for index, rule in enumerate(card.windows):
        if rule.window and rule.window not in by_name:
            yield ("windows", index, "window"), f'there is no window "{rule.window}"'
    known = [
        (index, by_name[rule.window])
        for index, rule in enumerate(card.windows)
        if rule.window in by_name
    ]
    by_calendar = {calendar.name: calendar for calendar in calendars}
    for (_, one), (index, other) in combinations(known, 2):
        if one.name == other.name or one.calendar not in by_calendar:
            continue
        if one.calendar != other.calendar:
            what = f'"{one.name}" and "{other.name}" have different calendars: one price, one zone'
            yield ("windows", index), what
            continue
        moment = overlap(by_calendar[one.calendar], one, other)
        if moment is not None:
            yield ("windows", index), f'"{other.name}" overlaps "{one.name}": {moment}'


def _steps(card: RateCard) -> Iterator[Problem]:
    marginal = card.steps_apply is StepsApply.MARGINAL
    if marginal and not card.steps:
        yield ("steps_apply",), "there are no steps that it could be of"
    if marginal and card.round_up_tokens != 1:
        yield ("round_up_tokens",), "a request cut by marginal steps would be rounded at each"
    for index, step in enumerate(card.steps):
        if not step.prompt_above and not step.output_above:
            yield ("steps", index), "give prompt_above or output_above; what always holds is a rate"
        if marginal and step.output_above:
            yield ("steps", index, "output_above"), "marginal steps are of the prompt alone"
    limits = [(step.prompt_above, step.output_above) for step in card.steps]
    for index, (one, other) in enumerate(pairwise(limits), 1):
        if other <= one:
            yield ("steps", index), "is out of order: steps go from shorter to longer"


def _promotions(card: RateCard, effective_time_ns: int) -> Iterator[Problem]:
    yield from _twice([each.name for each in card.promotions], "promotions", "name")
    for index, each in enumerate(card.promotions):
        if NO_TIME in (each.start_ns, each.end_ns):
            continue
        if each.end_ns <= each.start_ns:
            yield ("promotions", index, "until"), "must be later than from"
        elif each.end_ns <= effective_time_ns:
            yield ("promotions", index, "until"), "it ends before the version starts"
        for sooner in card.promotions[:index]:
            if each.start_ns < sooner.end_ns and sooner.start_ns < each.end_ns:
                yield ("promotions", index), f'"{each.name}" overlaps "{sooner.name}"'


def _twice(names: Sequence[str], key: str, field: str) -> Iterator[Problem]:
    for index, name in enumerate(names):
        if name and name in names[:index]:
            yield (key, index, field), f'"{name}" is used twice'
