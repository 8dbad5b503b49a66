"""Why a request costs what it costs: each line with the rates and layers that made its price.

Invariant: the lines are those of `rating`, not a second computation. Pure, any thread.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from billing.line import RatedLine
from billing.money import ONE, to_text
from billing.price_book import PriceVersion
from billing.price_card import CACHE_WRITE, RateCard, Selection, write_meter
from billing.price_words import rate_words
from billing.rating import Facts, selected_lines

__all__ = ["ExplainedLine", "explained_lines", "notes_of"]


@dataclass(frozen=True, slots=True)
class ExplainedLine:
    line: RatedLine
    derivation: tuple[str, ...]
    """Layer by layer, for people: "base: 1", "window night: all x 0.5"."""


def explained_lines(facts: Facts, version: PriceVersion) -> tuple[ExplainedLine, ...]:
    card = version.card_of(facts.model)
    if card is None:
        return ()
    return tuple(
        ExplainedLine(line, tuple(_derivation(card, selection, _rate_name(card, selection, line))))
        for selection, line in selected_lines(facts, version)
    )


def notes_of(facts: Facts, version: PriceVersion) -> tuple[str, ...]:
    """What is charged otherwise than it was counted."""
    card = version.card_of(facts.model)
    if card is None:
        return ()
    tokens, hits = facts.tokens, card.hits
    charged: dict[str, int] = {}
    for _, line in selected_lines(facts, version):
        meter = "hit" if line.key.of_hits else line.key.meter
        charged[meter] = charged.get(meter, 0) + line.quantity
    notes = []
    if card.round_up_tokens > 1:
        notes.append(f"tokens of each class are rounded up to {card.round_up_tokens}")
    elif charged.get("hit", 0) < tokens.hit:
        lost = tokens.hit - charged.get("hit", 0)
        why = (
            f"the prompt is under {hits.minimum_prompt_tokens} tokens"
            if tokens.prompt < hits.minimum_prompt_tokens
            else f"fewer than {hits.minimum_hit_tokens} are no hit"
            if tokens.hit < hits.minimum_hit_tokens
            else f"hits count in steps of {hits.step_tokens}"
        )
        notes.append(f"{lost} hit tokens are charged as miss: {why}")
    if tokens.cache_write and not charged.get(CACHE_WRITE):
        notes.append(f"{tokens.cache_write} cache write tokens cost nothing more")
    return tuple(notes)


def _rate_name(card: RateCard, selection: Selection, line: RatedLine) -> str:
    if line.key.meter != CACHE_WRITE:
        return line.key.meter
    name = write_meter(card.rates(selection), line.key.ttl_class)
    assert name is not None, "a line has a rate"
    return name


def _derivation(card: RateCard, selection: Selection, meter: str) -> Iterator[str]:
    of = ""
    for name, change in card.layers(selection):
        rate = dict(change.rates).get(meter)
        if rate is not None:
            if rate.price is not None or rate.of:
                of = rate.of
            yield f"{name}: {rate_words(rate)}"
        if of:
            other = dict(change.rates).get(of)
            if other is not None:
                yield f"{name}: {of} {rate_words(other)}"
        if change.times != ONE:
            yield f"{name}: all x {to_text(change.times)}"
