"""A card's rules in words, for people: tables, checks, the price book over the wire. Pure."""

from collections.abc import Iterator
from datetime import UTC, datetime

from billing.money import ONE, to_text
from billing.price_card import Change, HitRule, Rate, RateCard, StepsApply, WriteMode

__all__ = ["change_words", "moment", "rate_words", "rules_of"]


def rules_of(card: RateCard) -> list[str]:
    """What a card has beside base rates of hit, miss, output and cache writes on top."""
    return [*_units(card), *_layers(card), *_more(card)]


def change_words(change: Change) -> str:
    parts = [f"{meter} {rate_words(rate)}" for meter, rate in change.rates]
    if change.times != ONE:
        parts.append(f"all x {to_text(change.times)}")
    return ", ".join(parts) or "no change"


def rate_words(rate: Rate) -> str:
    if rate.price is not None:
        return to_text(rate.price)
    return f"x {to_text(rate.times)}" + (f" of {rate.of}" if rate.of else "")


def moment(time_ns: int) -> str:
    return f"{datetime.fromtimestamp(time_ns // 10**9, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _units(card: RateCard) -> Iterator[str]:
    hits = card.hits
    if hits.minimum_prompt_tokens:
        yield f"no hits in prompts under {hits.minimum_prompt_tokens} tokens"
    if hits.minimum_hit_tokens:
        yield f"no hits under {hits.minimum_hit_tokens} tokens"
    if hits.step_tokens != HitRule().step_tokens:
        yield f"hits in steps of {hits.step_tokens} tokens"
    if card.round_up_tokens != 1:
        yield f"tokens of a class rounded up to {card.round_up_tokens}"
    if card.cache_write_mode is WriteMode.INSTEAD:
        yield "cache writes of the prompt in place of miss"


def _layers(card: RateCard) -> Iterator[str]:
    marginal = card.steps_apply is StepsApply.MARGINAL
    for step in card.steps:
        name = f"prompt tokens past {step.prompt_above}" if marginal else step.name
        yield f"{name}: {change_words(step.change)}"
    for window in card.windows:
        yield f"window {window.window}: {change_words(window.change)}"
    for each in card.classes:
        yield f"class {each.service_class}: {change_words(each.change)}"
    for promotion in card.promotions:
        period = f"{moment(promotion.start_ns)} to {moment(promotion.end_ns)}"
        yield f"promotion {promotion.name}, {period}: {change_words(promotion.change)}"


def _more(card: RateCard) -> Iterator[str]:
    for meter, rate in card.base.rates:
        if meter not in ("hit", "miss", "output") and ":" not in meter:
            yield f"{meter}: {rate_words(rate)}"
    if card.storage is not None:
        meter = card.storage.meter.value.replace("_", " ")
        yield f"storage: {to_text(card.storage.price)} an hour, {meter}"
