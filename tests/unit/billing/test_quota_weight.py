from decimal import Decimal

from billing.price_card import RateCard
from billing.quota_weight import quota_weight
from tests.unit.billing.price_books import tokens_of, version_of


def card(quota: str = "") -> RateCard:
    more = f"quota = {{ {quota} }}\n" if quota else ""
    promotion = (
        '[[versions.prices.promotions]]\nname = "p"\nfrom = 2025-01-01T00:00:00Z\n'
        'until = 2025-02-01T00:00:00Z\ntimes = "0"\n'
    )
    return version_of(more + promotion).cards[0]


def test_tokens_weigh_one_each_where_nothing_is_said() -> None:
    assert quota_weight(tokens_of(hit=100, miss=10, output=1, write=10), card()) == 111


def test_hits_may_weigh_less_and_a_tier_more_than_others() -> None:
    weighed = card('hit = "0.1", hit_ssd = "0.25", request = "5", cache_write = "0.5"')
    tokens = tokens_of(hit=100, ssd=100, miss=10, output=1, write=10)
    assert quota_weight(tokens, weighed) == Decimal(10) + 25 + 10 + 1 + 5 + 5


def test_a_weight_follows_no_price() -> None:
    assert quota_weight(tokens_of(miss=10), card('miss = "2"')) == 20
