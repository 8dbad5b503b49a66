"""Rating: what an event costs, as lines with keys, and as balanced postings.

    receivable/<tenant>    + sum           what the tenant owes
    revenue/hit            - quantity x price of hits
    revenue/miss           - ... of miss tokens
    revenue/output         - ... of output tokens
    revenue/cache_write    - ... of cache write tokens, by TTL class, where that has a price
    revenue/request        - the price of a request, where it has one

Invariant: the postings of an event sum to exactly zero, and the same event and price version always
give the same postings. An amount is a function of key and quantity, linear in the quantity: sums of
quantities by key may be priced instead of their parts. Every token that the event counts is
charged; which tokens an end counts is the worker's rule (docs/billing.md), and a lost worker's
event counts none. What has no tokens has no line. Pure, any thread.
"""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import NamedTuple

from billing.line import LineKey, RatedLine
from billing.money import EXACT, ZERO
from billing.price_book import PriceVersion
from billing.price_card import (
    CACHE_WRITE,
    HIT_TIERS,
    METERS,
    RateCard,
    Selection,
    StepsApply,
    WriteMode,
    write_meter,
)
from billing.usage import TokenCounts, UsageEvent

__all__ = [
    "Facts",
    "Posting",
    "account_of",
    "facts_of",
    "rate",
    "rated_lines",
    "selected_lines",
    "selections",
]


class Facts(NamedTuple):
    """What rating needs to know of a request."""

    model: str
    tokens: TokenCounts
    end_time_ns: int
    service_class: str = ""
    """Empty: none was asked for."""


class Posting(NamedTuple):
    """One side of an entry. Debits are positive."""

    account: str
    token_class: str
    """Empty on the tenant's side."""
    quantity_tokens: int
    amount: Decimal
    currency: str


def rate(event: UsageEvent, version: PriceVersion | None) -> tuple[Posting, ...]:
    """Postings of `event` under `version`; none when there is no price or nothing to charge."""
    if version is None:
        return ()
    credits_ = []
    owed, currency = ZERO, version.currency
    for key, quantity in _quantities(event, version):
        meter, amount = key.meter, key.amount(quantity)
        owed = EXACT.add(owed, amount)
        negative = EXACT.minus(amount) if amount else ZERO
        credits_.append(Posting(_ACCOUNTS[meter], meter, quantity, negative, currency))
    if not credits_:
        return ()
    return (Posting(f"receivable/{event.tenant_id}", "", 0, owed, currency), *credits_)


def _quantities(event: UsageEvent, version: PriceVersion) -> Iterable[tuple[LineKey, int]]:
    """Keys and quantities of the lines of `event`; straight to them where no layer can hold."""
    card = version.card_of(event.model)
    if card is None or not card.linear:
        return ((line.key, line.quantity) for line in rated_lines(facts_of(event), version))
    base, tokens = _BASE[0][1], event.tokens
    write_class = tokens.cache_write_ttl_class
    return [
        (card.key(base, meter, write_class if meter == CACHE_WRITE else ""), quantity)
        for meter, quantity in _charges(tokens, card, card.rates(base))
    ]


def account_of(meter: str) -> str:
    """The account that a meter's amounts are credited to."""
    return f"revenue/{'hit' if meter in HIT_TIERS else meter}"


_ACCOUNTS = {meter: account_of(meter) for meter in (*METERS, CACHE_WRITE)}


def facts_of(event: UsageEvent) -> Facts:
    assert event.end_time_ns is not None, "refusal_of lets no event without times pass"
    return Facts(event.model, event.tokens, event.end_time_ns, event.service_class or "")


def rated_lines(facts: Facts, version: PriceVersion) -> tuple[RatedLine, ...]:
    """The lines of a request, in the order of their postings; none when nothing has a price."""
    return tuple(line for _, line in selected_lines(facts, version))


def selected_lines(facts: Facts, version: PriceVersion) -> list[tuple[Selection, RatedLine]]:
    """Lines with the layers that made their prices."""
    card = version.card_of(facts.model)
    if card is None:
        return []
    tokens = facts.tokens
    bands = selections(facts, version, card)
    last = bands[-1][1]
    charges = _charges(tokens, card, card.rates(last))
    if len(bands) == 1:
        write_class = tokens.cache_write_ttl_class
        return [
            (last, RatedLine(card.key(last, m, write_class if m == CACHE_WRITE else ""), quantity))
            for m, quantity in charges
        ]
    lines: list[tuple[Selection, RatedLine]] = []
    position = 0
    for meter, quantity in charges:
        ttl_class = tokens.cache_write_ttl_class if meter == CACHE_WRITE else ""
        if meter in _WHOLE or position >= tokens.prompt:
            parts = [(last, quantity)]
        else:
            parts = _split(bands, position, position + quantity)
            position += quantity
        for selection, part in parts:
            lines.append((selection, RatedLine(card.key(selection, meter, ttl_class), part)))
    return lines


_WHOLE = ("output", "request")
"""No places of the prompt."""

_BASE = [(0, Selection())]


def selections(facts: Facts, version: PriceVersion, card: RateCard) -> list[tuple[int, Selection]]:
    """(position in the prompt from where it holds, layers), in order; the last is that of the
    prompt's end, by which all is charged that is not a place of the prompt."""
    if card.linear:
        return _BASE
    window = version.window_at([each.window for each in card.windows], facts.end_time_ns)
    service_class = next(
        (i for i, each in enumerate(card.classes) if each.service_class == facts.service_class), -1
    )
    promotion = next(
        (
            i
            for i, each in enumerate(card.promotions)
            if each.start_ns <= facts.end_time_ns < each.end_ns
        ),
        -1,
    )
    reached = [
        i
        for i, step in enumerate(card.steps)
        if facts.tokens.prompt > step.prompt_above or not step.prompt_above
        if facts.tokens.output > step.output_above or not step.output_above
    ]
    marginal = card.steps_apply is StepsApply.MARGINAL
    steps = [-1, *reached] if marginal else reached[-1:] or [-1]
    return [
        (
            card.steps[step].prompt_above if marginal and step >= 0 else 0,
            Selection(step, window, service_class, promotion),
        )
        for step in steps
    ]


def _charges(
    tokens: TokenCounts, card: RateCard, rates: Mapping[str, Decimal]
) -> list[tuple[str, int]]:
    """(meter, quantity) in the order of lines; those of the prompt as they follow in it."""
    short = tokens.prompt < card.hits.minimum_prompt_tokens
    hit = 0 if short or tokens.hit < card.hits.minimum_hit_tokens else tokens.hit
    hit -= hit % card.hits.step_tokens
    miss = tokens.prompt - hit
    written = 0 if short or not tokens.cache_write else tokens.cache_write
    if written and write_meter(rates, tokens.cache_write_ttl_class) is None:
        written = 0
    charges = _hits(tokens, hit, card.priced_tiers)
    if card.cache_write_mode is WriteMode.INSTEAD:
        written = min(written, tokens.miss)
        charges += [(CACHE_WRITE, written), ("miss", miss - written), ("output", tokens.output)]
    else:
        charges += [("miss", miss), ("output", tokens.output), (CACHE_WRITE, written)]
    up = card.round_up_tokens
    if up > 1:
        charges = [(meter, -(-quantity // up) * up) for meter, quantity in charges]
    if "request" in rates and (tokens.prompt or tokens.output):
        charges.append(("request", 1))
    return [charge for charge in charges if charge[1]]


def _hits(tokens: TokenCounts, hit: int, priced: frozenset[str]) -> list[tuple[str, int]]:
    """Hits by the meters that have prices. Those that are none leave the farthest tier first."""
    if not priced:
        return [("hit", hit)]
    counts = (tokens.hit_gpu, tokens.hit_host, tokens.hit_ssd, tokens.hit_shared)
    found: dict[str, int] = {}
    for tier, count in zip(HIT_TIERS, counts, strict=True):
        taken = min(count, hit)
        hit -= taken
        meter = tier if tier in priced else "hit"
        found[meter] = found.get(meter, 0) + taken
    return list(found.items())


def _split(bands: list[tuple[int, Selection]], start: int, end: int) -> list[tuple[Selection, int]]:
    """[start, end) of a prompt's positions, by band."""
    limits = [limit for limit, _ in bands[1:]] + [end]
    parts = []
    for (low, selection), high in zip(bands, limits, strict=True):
        count = min(end, high) - max(start, low)
        if count > 0:
            parts.append((selection, count))
    return parts
