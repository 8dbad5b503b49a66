"""Where one scope stands against its limits on requests and tokens.

Invariant: asking changes nothing; what is taken is taken whole. A request that is larger than a
limit passes when nothing else has used any of it. Owned by the ledger's writer thread.
"""

from dataclasses import dataclass

from billing.budget import Budget
from billing.period import Period
from billing.token_bucket import MICRO, TokenBucket

__all__ = ["QuotaShort", "QuotaState"]


@dataclass(frozen=True, slots=True)
class QuotaShort:
    """Which limit does not allow a request now, and when it will."""

    quota: str
    limit: int
    wait_ns: int


@dataclass(slots=True)
class QuotaState:
    """Of one scope, under the budget that its buckets were made for."""

    budget: Budget
    requests: TokenBucket | None
    tokens: TokenBucket | None
    day: Period
    day_used: int
    """Weight of what ended on that day, in millionths."""

    def short(self, weight: int, held: int, day: Period, now_ns: int) -> QuotaShort | None:
        """None: it may pass. `held`: weight of what is under way; `day`: today."""
        if self.requests is not None and (wait := self.requests.wait_ns(MICRO, now_ns)):
            return QuotaShort("requests_per_minute", self.requests.per_minute, wait)
        if self.tokens is not None and (wait := self.tokens.wait_ns(weight, now_ns)):
            return QuotaShort("tokens_per_minute", self.tokens.per_minute, wait)
        limit = self.budget.tokens_per_day
        if limit is not None:
            used = held + (self.day_used if day == self.day else 0)
            if used + min(weight, limit * MICRO) > limit * MICRO:
                assert day.end_ns is not None
                return QuotaShort("tokens_per_day", limit, day.end_ns - now_ns)
        return None

    def take(self, request_count: int, weight: int, now_ns: int) -> None:
        """From the minute's buckets; negative: given back."""
        if self.requests is not None and request_count:
            self.requests = self.requests.taken(request_count * MICRO, now_ns)
        if self.tokens is not None and weight:
            self.tokens = self.tokens.taken(weight, now_ns)

    def ended(self, weight: int, day: Period) -> None:
        """Of a request that ended on `day`, which does not lie before today."""
        assert day.start_ns is not None
        assert self.day.start_ns is not None
        if day == self.day:
            self.day_used += weight
        elif day.start_ns > self.day.start_ns:
            self.day, self.day_used = day, weight
