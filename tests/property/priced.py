"""Random price versions of format 2, and events to rate with them."""

from datetime import date
from decimal import Decimal

from hypothesis import strategies as st

from billing.calendar import DAY_NAMES, DAY_SECONDS, Calendar, Window
from billing.money import ONE
from billing.price_book import PriceVersion
from billing.price_card import (
    HIT_TIERS,
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
from billing.usage import TokenCounts

NOW = 1_000_000 * 10**9
DAY = DAY_SECONDS * 10**9

_WRITES = tuple(f"cache_write:{name}" for name in ("", "1h", "*"))

money = st.decimals(min_value=0, max_value=10**6, places=6).map(
    lambda d: Decimal(format(d.copy_abs(), "f"))
)
factors = st.decimals(min_value=0, max_value=10, places=3).map(
    lambda d: Decimal(format(d.copy_abs(), "f"))
)
absolute = money.map(Rate)
relative = st.builds(lambda t, of: Rate(None, t, of), factors, st.sampled_from(["miss", "output"]))
scaled = factors.map(lambda times: Rate(None, times))


@st.composite
def bases(draw: st.DrawFn) -> Change:
    rates = {"miss": draw(absolute), "output": draw(absolute), "hit": draw(absolute | relative)}
    for meter in draw(st.sets(st.sampled_from((*HIT_TIERS, "request", *_WRITES)))):
        rates[meter] = draw(absolute | relative)
    return Change(tuple(sorted(rates.items())))


@st.composite
def changes(draw: st.DrawFn, base: Change) -> Change:
    known = sorted(meter for meter, _ in base.rates)
    rates = {
        meter: draw(
            absolute | scaled if meter in ("miss", "output") else absolute | scaled | relative
        )
        for meter in draw(st.sets(st.sampled_from(known), max_size=3))
    }
    return Change(tuple(sorted(rates.items())), draw(st.just(ONE) | factors))


@st.composite
def cards(draw: st.DrawFn, pattern: str = "*") -> RateCard:
    base = draw(bases())
    marginal = draw(st.booleans())
    limits = draw(st.lists(st.integers(1, 3000), max_size=3, unique=True).map(sorted))
    steps = tuple(Step(limit, 0, draw(changes(base))) for limit in limits)
    if not marginal and draw(st.booleans()):
        steps = (Step(0, draw(st.integers(1, 2000)), draw(changes(base))), *steps)
    cut = draw(st.integers(0, NOW))
    return RateCard(
        pattern,
        base,
        per=draw(st.sampled_from([1, 1000, 10**6])),
        cache_write_mode=draw(st.sampled_from(WriteMode)),
        hits=draw(
            st.builds(HitRule, st.integers(0, 2000), st.integers(0, 1000), st.integers(1, 200))
        ),
        round_up_tokens=1 if marginal else draw(st.sampled_from([1, 1, 100])),
        steps=steps,
        steps_apply=StepsApply.MARGINAL if marginal and steps else StepsApply.REQUEST,
        windows=draw(st.just(()) | changes(base).map(lambda c: (WindowRule("w", c),))),
        classes=draw(st.just(()) | changes(base).map(lambda c: (ClassRule("batch", c),))),
        promotions=draw(
            st.just(()) | changes(base).map(lambda c: (Promotion("p", cut, cut + DAY, c),))
        ),
        storage=draw(st.none() | st.builds(StorageRate, money, st.sampled_from(StorageMeter))),
        quota=draw(st.just(()) | factors.map(lambda f: (("hit", f), ("miss", ONE)))),
    )


hours = st.tuples(st.integers(0, DAY_SECONDS - 1), st.integers(1, DAY_SECONDS)).map(
    lambda pair: (pair[0], pair[0] + pair[1])
)
windows = st.builds(
    Window,
    st.just("w"),
    st.just("c"),
    st.lists(st.sampled_from(DAY_NAMES), min_size=1, max_size=3).map(tuple),
    st.lists(hours, min_size=1, max_size=2).map(tuple),
)
days = st.dates(date(1970, 1, 1), date(1970, 1, 14))
calendars = st.builds(
    Calendar,
    st.just("c"),
    st.just("Somewhere/Else"),
    st.lists(
        st.tuples(st.integers(0, 10**6), st.integers(-50_000, 50_000)), min_size=1, max_size=3
    ).map(lambda each: tuple(sorted(dict(each).items()))),
    st.lists(days, max_size=3, unique=True).map(lambda each: tuple(sorted(each))),
    st.lists(days, max_size=2, unique=True).map(lambda each: tuple(sorted(each))),
)


@st.composite
def versions(draw: st.DrawFn, name: str = "v", start: int = 0) -> PriceVersion:
    return PriceVersion(
        name=name,
        effective_time_ns=start,
        currency="CNY",
        source=draw(st.text(max_size=5)),
        invoice_decimals=draw(st.integers(0, 12)),
        rate_cards=tuple(
            draw(cards(pattern)) for pattern in draw(st.sampled_from([["*"], ["m1", "*"], ["m?"]]))
        ),
        calendars=(draw(calendars),),
        windows=(draw(windows),),
    )


@st.composite
def token_counts(draw: st.DrawFn) -> TokenCounts:
    """Small enough that limits and steps are near."""
    tiers = [draw(st.integers(0, 1500)) for _ in range(4)]
    miss, output = draw(st.integers(0, 3000)), draw(st.integers(0, 2500))
    written = draw(st.integers(0, miss + output))
    ttl_class = draw(st.sampled_from(["", "1h", "5m"])) if written else ""
    hit = sum(tiers)
    return TokenCounts(hit + miss, hit, *tiers, miss, output, written, ttl_class)
