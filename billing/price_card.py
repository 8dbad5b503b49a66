"""A card: what tokens of the models that fit a pattern cost, and by which rules.

    base rates -> at most one step -> one window -> one service class -> one promotion

Each of these layers replaces rates or multiplies them. Invariant: a card says the same price for
the same selection of layers for ever, exactly; a relative rate follows the rate it is relative to,
which is never relative itself, so there is no cycle. Frozen data, any thread.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from functools import cached_property
from typing import NamedTuple

from billing.line import LineKey
from billing.money import EXACT, ONE, UNIT_TOKENS, ZERO
from billing.pattern import fits

__all__ = [
    "ANY_CLASS",
    "CACHE_WRITE",
    "HIT_TIERS",
    "METERS",
    "RELATIVE_TO",
    "Change",
    "ClassRule",
    "HitRule",
    "Promotion",
    "Rate",
    "RateCard",
    "Selection",
    "Step",
    "StepsApply",
    "StorageMeter",
    "StorageRate",
    "WindowRule",
    "WriteMode",
    "write_meter",
]

ANY_CLASS = "*"
"""Every TTL class without a price of its own, "" (without an end) too."""

CACHE_WRITE = "cache_write"
HIT_TIERS = ("hit_gpu", "hit_host", "hit_ssd", "hit_shared")
"""From near to far. A tier without a rate of its own has that of "hit"."""

METERS = ("hit", *HIT_TIERS, "miss", "output", "request")
"""What has a rate, beside cache writes. Frozen: lines and postings come in this order."""

RELATIVE_TO = ("miss", "output")

_KEYS_REMEMBERED = 4_096


class WriteMode(Enum):
    """What a price for cache writes is paid for. Values are stored: frozen."""

    ON_TOP = "on_top"
    """Beside what the tokens cost as miss and output."""
    INSTEAD = "instead"
    """In place of the miss price, for those of the prompt; those of the output have none."""


class StepsApply(Enum):
    """What a step's rates hold for. Values are stored: frozen."""

    REQUEST = "request"
    MARGINAL = "marginal"
    """For the tokens of the prompt past the limit alone."""


class StorageMeter(Enum):
    """How long a stored token is charged. Values are stored: frozen."""

    EXACT_SECONDS = "exact_seconds"
    HOURLY_MAXIMUM = "hourly_maximum"
    """Of each hour of the clock, the most tokens that were stored at a time in it."""
    STARTED_HOUR = "started_hour"
    """Each stored prefix by itself, from when it was stored: every hour begun is an hour."""


@dataclass(frozen=True, slots=True)
class Rate:
    """A price, or `times` the rate of the meter `of`, or `times` what the rate was."""

    price: Decimal | None
    times: Decimal = ONE
    of: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """A layer: rates that it sets, by meter, and what all rates are multiplied by."""

    rates: tuple[tuple[str, Rate], ...] = ()
    times: Decimal = ONE


@dataclass(frozen=True, slots=True)
class Step:
    """Holds where prompt and output are longer; the last that holds counts."""

    prompt_above: int
    output_above: int
    change: Change

    @property
    def name(self) -> str:
        parts = [("prompt", self.prompt_above), ("output", self.output_above)]
        return " and ".join(f"{what} over {above}" for what, above in parts if above) or "any"


@dataclass(frozen=True, slots=True)
class WindowRule:
    window: str
    change: Change


@dataclass(frozen=True, slots=True)
class ClassRule:
    service_class: str
    change: Change


@dataclass(frozen=True, slots=True)
class Promotion:
    """From a moment up to, not including, another."""

    name: str
    start_ns: int
    end_ns: int
    change: Change


@dataclass(frozen=True, slots=True)
class HitRule:
    """Which hits are charged as hits; the rest of them is charged as miss tokens."""

    minimum_prompt_tokens: int = 0
    """Shorter prompts have no hits, and no cache writes."""
    minimum_hit_tokens: int = 0
    step_tokens: int = 1
    """Hits count in whole multiples."""


@dataclass(frozen=True, slots=True)
class StorageRate:
    """Per `RateCard.per` tokens and hour."""

    price: Decimal
    meter: StorageMeter


class Selection(NamedTuple):
    """Which layers hold: places in the card's tuples, -1 for none."""

    step: int = -1
    window: int = -1
    service_class: int = -1
    promotion: int = -1


@dataclass(frozen=True)
class RateCard:
    """The first card of a version whose pattern fits a model holds."""

    model_pattern: str
    """A model's name; "*" stands for any run of characters, "?" for one."""
    base: Change
    per: int = UNIT_TOKENS
    """Tokens that a rate is the price of: a power of ten. A request's is of one request."""
    cache_write_mode: WriteMode = WriteMode.ON_TOP
    hits: HitRule = field(default_factory=HitRule)
    round_up_tokens: int = 1
    """A request's tokens of each meter are rounded up to multiples of it."""
    steps: tuple[Step, ...] = ()
    steps_apply: StepsApply = StepsApply.REQUEST
    windows: tuple[WindowRule, ...] = ()
    classes: tuple[ClassRule, ...] = ()
    promotions: tuple[Promotion, ...] = ()
    storage: StorageRate | None = None
    quota: tuple[tuple[str, Decimal], ...] = ()
    """Weight of a token in limits, by meter. Has nothing to do with its price."""

    def fits(self, model: str) -> bool:
        return fits(self.model_pattern, model)

    @cached_property
    def linear(self) -> bool:
        """Whether the price of a sum of requests' tokens is the sum of their prices."""
        return (
            not (self.steps or self.windows or self.classes or self.promotions)
            and self.hits == HitRule()
            and self.round_up_tokens == 1
            and self.cache_write_mode is WriteMode.ON_TOP
            and all(meter != "request" for meter, _ in self.base.rates)
        )

    @cached_property
    def priced_tiers(self) -> frozenset[str]:
        """Tiers whose hits have a rate of their own."""
        return frozenset(meter for meter, _ in self.base.rates if meter in HIT_TIERS)

    def layers(self, selection: Selection) -> list[tuple[str, Change]]:
        """(name, change) of base and selected layers, in the order they apply."""
        layers = [("base", self.base)]
        if selection.step >= 0:
            step = self.steps[selection.step]
            layers.append((step.name, step.change))
        if selection.window >= 0:
            window = self.windows[selection.window]
            layers.append((f"window {window.window}", window.change))
        if selection.service_class >= 0:
            of_class = self.classes[selection.service_class]
            layers.append((f"class {of_class.service_class}", of_class.change))
        if selection.promotion >= 0:
            promotion = self.promotions[selection.promotion]
            layers.append((f"promotion {promotion.name}", promotion.change))
        return layers

    def rates(self, selection: Selection) -> Mapping[str, Decimal]:
        """The price of each meter that has one."""
        found = self._resolved.get(selection)
        if found is None:
            found = _resolve([change for _, change in self.layers(selection)])
            self._resolved[selection] = found
        return found

    def rule(self, selection: Selection) -> str:
        """Names the layers beside the base; empty when there are none."""
        return "; ".join(name for name, _ in self.layers(selection)[1:])

    def key(self, selection: Selection, meter: str, ttl_class: str) -> LineKey:
        """Of lines of `meter`, which has a rate. `ttl_class`: of cache writes, else empty."""
        at = (selection, meter, ttl_class)
        found = self._keys.get(at)
        if found is None:
            if len(self._keys) >= _KEYS_REMEMBERED:
                self._keys.clear()
            found = self._keys[at] = self._key(*at)
        return found

    def _key(self, selection: Selection, meter: str, ttl_class: str) -> LineKey:
        rates = self.rates(selection)
        name = write_meter(rates, ttl_class) if meter == CACHE_WRITE else meter
        assert name is not None, "who has no price for a class has no line of it"
        price = rates[name]
        if meter == "hit" or meter in HIT_TIERS:
            baseline = rates["miss"]
        elif meter == CACHE_WRITE:
            baseline = rates["miss"] if self.cache_write_mode is WriteMode.INSTEAD else ZERO
        else:
            baseline = price
        per = 1 if meter == "request" else self.per
        return LineKey(meter, ttl_class, price, per, baseline, self.rule(selection))

    @cached_property
    def _keys(self) -> dict[tuple[Selection, str, str], LineKey]:
        """Only remembers."""
        return {}

    @cached_property
    def _resolved(self) -> dict[Selection, Mapping[str, Decimal]]:
        """Only remembers; as many as there are selections."""
        return {}


def write_meter(rates: Mapping[str, Decimal], ttl_class: str) -> str | None:
    """The meter that cache writes of `ttl_class` have a rate by; None: they cost nothing more."""
    for name in (f"{CACHE_WRITE}:{ttl_class}", f"{CACHE_WRITE}:{ANY_CLASS}"):
        if name in rates:
            return name
    return None


def _resolve(changes: Sequence[Change]) -> Mapping[str, Decimal]:
    rates: dict[str, Rate] = {}
    times = ONE
    for change in changes:
        for meter, rate in change.rates:
            if rate.price is None and not rate.of:
                was = rates[meter]
                rate = Rate(was.price, EXACT.multiply(was.times, rate.times), was.of)
            rates[meter] = rate
        times = EXACT.multiply(times, change.times)
    return {meter: EXACT.multiply(_price(rates, rate), times) for meter, rate in rates.items()}


def _price(rates: Mapping[str, Rate], rate: Rate) -> Decimal:
    price = rate.price if rate.price is not None else _price(rates, rates[rate.of])
    return EXACT.multiply(price, rate.times)
