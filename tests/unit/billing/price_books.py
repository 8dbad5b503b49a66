"""Text of price books of format 2 for tests."""

from billing.price_book import PriceVersion
from billing.price_book_file import parse_price_book
from billing.rating import Facts, rated_lines
from billing.usage import TokenCounts

START = 1_735_689_600 * 10**9
"""1 January 2025, 00:00 UTC, a Wednesday."""
HOUR = 3_600 * 10**9

HEAD = """format = 2
[[versions]]
name = "v"
effective_time = 2025-01-01T00:00:00Z
currency = "CNY"
source = "test"
"""
PRICE = """[[versions.prices]]
model = "*"
hit = "0.1"
miss = "1"
output = "2"
"""
NIGHT = """[[versions.calendars]]
name = "cn"
zone = "Asia/Shanghai"
holidays = [2025-10-01, 2025-10-02]
workdays = [2025-09-28]
[[versions.windows]]
name = "night"
calendar = "cn"
hours = ["22:00-06:00"]
"""


def version_of(more: str, times: str = "", price: str = PRICE) -> PriceVersion:
    """A version with one price, `more` of its keys and tables, and windows before it."""
    return parse_price_book(HEAD + times + price + more, "b").versions[0]


def tokens_of(
    hit: int = 0, miss: int = 0, output: int = 0, write: int = 0, ttl: str = "", ssd: int = 0
) -> TokenCounts:
    return TokenCounts(hit + ssd + miss, hit + ssd, 0, hit, ssd, 0, miss, output, write, ttl)


def charged(
    version: PriceVersion, tokens: TokenCounts, time_ns: int = START, service_class: str = ""
) -> list[tuple[str, int, str, str]]:
    """(meter, quantity, unit price, rule) of each line."""
    lines = rated_lines(Facts("m", tokens, time_ns, service_class), version)
    return [(x.key.meter, x.quantity, format(x.key.unit_price, "f"), x.key.rule) for x in lines]
