"""Storage: what keeping tokens for a time costs.

Invariant: quantities are whole token-nanoseconds and amounts fractions of integers, so nothing is
rounded before the invoice line: an hour is no power of ten. A moment belongs to exactly one period
and one price version, so parts of a time add up to the whole. Pure, any thread.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from billing.period import HOUR_NS
from billing.price_book import PriceBook, PriceVersion
from billing.price_card import StorageMeter, StorageRate

__all__ = ["StorageCharge", "StorageSpan", "storage_charges"]


@dataclass(frozen=True, slots=True)
class StorageSpan:
    """Tokens that were kept for somebody, from a moment up to, not including, another."""

    model: str
    tokens: int
    start_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True)
class StorageCharge:
    """Of one model under one price version."""

    model: str
    version: PriceVersion
    rate: StorageRate
    per: int
    token_ns: int
    """As charged: tokens x nanoseconds."""

    @property
    def amount(self) -> Fraction:
        return Fraction(self.rate.price) * self.token_ns / (self.per * HOUR_NS)

    @property
    def token_hours(self) -> Fraction:
        return Fraction(self.token_ns, HOUR_NS)


def storage_charges(
    spans: Sequence[StorageSpan], book: PriceBook, start_ns: int, end_ns: int
) -> list[StorageCharge]:
    """What `spans` cost from `start_ns` up to `end_ns`, by model, oldest version first.

    Versions without a price for storage charge nothing.
    """
    charges = []
    for model in sorted({span.model for span in spans}):
        own = [span for span in spans if span.model == model]
        for version, low, high in _versions(book, start_ns, end_ns):
            card = version.card_of(model)
            if card is None or card.storage is None:
                continue
            token_ns = _METERS[card.storage.meter](own, low, high)
            if token_ns:
                charges.append(StorageCharge(model, version, card.storage, card.per, token_ns))
    return charges


def _versions(
    book: PriceBook, start_ns: int, end_ns: int
) -> Iterator[tuple[PriceVersion, int, int]]:
    """Each version that holds in between, with what of the time is its own."""
    ends = [version.effective_time_ns for version in book.versions[1:]] + [end_ns]
    for version, version_end in zip(book.versions, ends, strict=True):
        low, high = max(start_ns, version.effective_time_ns), min(end_ns, version_end)
        if low < high:
            yield version, low, high


def _exact_seconds(spans: Iterable[StorageSpan], low: int, high: int) -> int:
    return sum(
        span.tokens * max(min(span.end_ns, high) - max(span.start_ns, low), 0) for span in spans
    )


def _started_hours(spans: Iterable[StorageSpan], low: int, high: int) -> int:
    """Hours of a span's own that begin in [low, high)."""
    hours = 0
    for span in spans:
        begun = -(-(min(span.end_ns, high) - span.start_ns) // HOUR_NS)
        before = -(-(low - span.start_ns) // HOUR_NS)
        hours += span.tokens * max(begun - max(before, 0), 0)
    return hours * HOUR_NS


def _hourly_maximum(spans: Iterable[StorageSpan], low: int, high: int) -> int:
    """Over the hours of the clock that begin in [low, high): the most tokens at a time in each."""
    changes: dict[int, int] = {}
    for span in spans:
        if span.start_ns < span.end_ns:
            changes[span.start_ns] = changes.get(span.start_ns, 0) + span.tokens
            changes[span.end_ns] = changes.get(span.end_ns, 0) - span.tokens
    first, last = -(-low // HOUR_NS), -(-high // HOUR_NS)
    most: dict[int, int] = {}
    held, moments = 0, sorted(changes)
    total = 0
    for moment, until in zip(moments, [*moments[1:], 0], strict=True):
        held += changes[moment]
        if not held:
            continue
        begun, ended = moment // HOUR_NS, -(-until // HOUR_NS)
        # Only the first and the last hour of a stretch are shared with another one.
        for hour in {begun, ended - 1}:
            most[hour] = max(most.get(hour, 0), held)
        total += held * max(min(ended - 1, last) - max(begun + 1, first), 0)
    total += sum(tokens for hour, tokens in most.items() if first <= hour < last)
    return total * HOUR_NS


_METERS = {
    StorageMeter.EXACT_SECONDS: _exact_seconds,
    StorageMeter.HOURLY_MAXIMUM: _hourly_maximum,
    StorageMeter.STARTED_HOUR: _started_hours,
}
