"""The most that a request can cost, before it is served.

Whatever of its prompt will be a hit, however long its answer, wherever it ends until its deadline:
each meter is taken at the dearest price that any selection of layers can give it. Invariant: no
event of such a request is rated higher. Exact. Pure, any thread.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import product

from billing.calendar import DAY_SECONDS
from billing.money import EXACT, ZERO
from billing.price_book import PriceBook, PriceVersion
from billing.price_card import HIT_TIERS, RateCard, Selection, WriteMode, write_meter

__all__ = ["CostBound", "RequestShape", "cost_bound"]

_SECOND_NS = 10**9

_EXACT_NS = 2 * DAY_SECONDS * _SECOND_NS
"""With a later deadline every window is taken to hold at some time."""

_METERS = 7
"""That tokens of a prompt can fall into: hits of five kinds, misses, cache writes."""


@dataclass(frozen=True, slots=True)
class RequestShape:
    """What is known of a request before it is served."""

    model: str
    prompt_tokens: int
    completion_tokens: int
    """At most, of all samples together."""
    service_class: str = ""
    ttl_class: str = ""
    """Of what it writes."""


@dataclass(frozen=True, slots=True)
class CostBound:
    amount: Decimal
    currency: str


def cost_bound(
    book: PriceBook, shape: RequestShape, now_ns: int, deadline_ns: int
) -> CostBound | None:
    """None where some moment until the deadline has no price, or another currency."""
    found: CostBound | None = None
    for version in _versions(book, now_ns, deadline_ns):
        card = version.card_of(shape.model) if version is not None else None
        if version is None or card is None:
            return None
        if found is not None and version.currency != found.currency:
            return None
        amount = _card_bound(version, card, shape, now_ns, deadline_ns)
        found = CostBound(max(amount, found.amount if found else ZERO), version.currency)
    return found


def _versions(book: PriceBook, now_ns: int, deadline_ns: int) -> list[PriceVersion | None]:
    """Those in force at some moment until the deadline; None: before the first."""
    later = [v for v in book.versions if now_ns < v.effective_time_ns <= deadline_ns]
    return [book.version_at(now_ns), *later]


def _card_bound(
    version: PriceVersion, card: RateCard, shape: RequestShape, now_ns: int, deadline_ns: int
) -> Decimal:
    rates = [card.rates(s) for s in _selections(version, card, shape, now_ns, deadline_ns)]

    def dearest(*meters: str) -> Decimal:
        return max((found[m] for found in rates for m in meters if m in found), default=ZERO)

    prompt, output, up = shape.prompt_tokens, shape.completion_tokens, card.round_up_tokens
    writes = [write_meter(found, shape.ttl_class) for found in rates]
    write = dearest(*(name for name in writes if name is not None))
    of_prompt = dearest("miss", "hit", *HIT_TIERS)
    charges = [(prompt, of_prompt), (output, dearest("output"))]
    if write and card.cache_write_mode is WriteMode.INSTEAD:
        charges[0] = (prompt, max(of_prompt, write))
    elif write:
        charges.append((prompt + output, write))
    # A meter's tokens are rounded up each by itself: the prompt may fall into every one of them.
    if up > 1:
        charges = [(count + _METERS * (up - 1), rate) for count, rate in charges]
    total = ZERO
    for count, rate in charges:
        total = EXACT.add(total, EXACT.multiply(Decimal(count), rate))
    total = EXACT.scaleb(total, 1 - len(str(card.per)))
    return EXACT.add(total, dearest("request"))


def _selections(
    version: PriceVersion, card: RateCard, shape: RequestShape, now_ns: int, deadline_ns: int
) -> Iterator[Selection]:
    """Every one that an end of the request can get."""
    if card.linear:
        yield Selection()
        return
    # One that is cancelled ends with fewer tokens: each step below the whole can be the one.
    steps = [
        i
        for i, step in enumerate(card.steps)
        if step.prompt_above < max(shape.prompt_tokens, 1)
        and step.output_above < max(shape.completion_tokens, 1)
    ]
    classes = [
        i for i, each in enumerate(card.classes) if each.service_class == shape.service_class
    ]
    promotions = {
        i
        for i, each in enumerate(card.promotions)
        if each.start_ns <= deadline_ns and now_ns < each.end_ns
    }
    windows = _windows(version, card, now_ns, deadline_ns)
    for step, window, promotion in product([-1, *steps], windows, [-1, *sorted(promotions)]):
        yield Selection(step, window, classes[0] if classes else -1, promotion)


def _windows(version: PriceVersion, card: RateCard, now_ns: int, deadline_ns: int) -> Sequence[int]:
    """Places of the windows that hold at some moment until the deadline; -1: none does."""
    names = [each.window for each in card.windows]
    if not names:
        return [-1]
    if deadline_ns - now_ns > _EXACT_NS:
        return range(-1, len(names))
    moments = {now_ns, deadline_ns, *_switches(version, now_ns, deadline_ns)}
    return sorted({version.window_at(names, moment) for moment in moments})


def _switches(version: PriceVersion, now_ns: int, deadline_ns: int) -> Iterator[int]:
    """Moments at which a window may begin or end."""
    now, deadline = now_ns // _SECOND_NS, deadline_ns // _SECOND_NS
    of_day = {0} | {t % DAY_SECONDS for w in version.windows for hours in w.hours for t in hours}
    for calendar in version.calendars:
        for start, _ in calendar.offsets:
            if now < start <= deadline:
                yield start * _SECOND_NS
        for offset in {offset for _, offset in calendar.offsets}:
            days = range((now + offset) // DAY_SECONDS, (deadline + offset) // DAY_SECONDS + 1)
            for day, second in product(days, of_day):
                moment = day * DAY_SECONDS + second - offset
                if now < moment <= deadline:
                    yield moment * _SECOND_NS
