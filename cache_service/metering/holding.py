"""One sort of stored tokens: how many, for how long, the most at a time, the hours that began.

    token nanoseconds   tokens x time, whole
    maximum             of what was kept for any time at all, since the last cut
    started             a block's first hour begins when it comes, its next an hour later, each
                        counted once, to the second

Invariant: what `cut` returns, added up, is what was kept, whatever came and left in between; what
is less than a millisecond of a token is taken over. Times never go back. Pure; nobody else's state.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["HOUR_NS", "Holding", "Use"]

SECOND_NS = 10**9
MILLISECOND_NS = 10**6
HOUR_SECONDS = 3_600
HOUR_NS = HOUR_SECONDS * SECOND_NS


@dataclass(frozen=True, slots=True)
class Use:
    """Of a time."""

    token_milliseconds: int
    maximum_tokens: int
    started_tokens: int


class Holding:
    """Made at the time of its first block."""

    def __init__(self, now_ns: int) -> None:
        self.tokens = 0
        self._at_ns = now_ns
        self._token_ns = 0
        self._maximum = 0
        self._started = 0
        self._phases: Counter[int] = Counter()
        """Tokens by the second of their own hours at which one begins."""
        self._second = now_ns // SECOND_NS + 1
        """Hours that begin before it are counted."""

    def came(self, tokens: int, now_ns: int) -> int:
        """Returns the second of the hour that `left` wants to hear."""
        second = now_ns // SECOND_NS
        self._advance(now_ns, second + 1)
        phase = second % HOUR_SECONDS
        self.tokens += tokens
        self._started += tokens
        self._phases[phase] += tokens
        return phase

    def left(self, phases: Mapping[int, int], now_ns: int) -> None:
        """Tokens by what `came` returned for them."""
        self._advance(now_ns, now_ns // SECOND_NS)
        for phase, tokens in phases.items():
            self.tokens -= tokens
            self._phases[phase] -= tokens
            assert self._phases[phase] >= 0, "more left than came"
            if not self._phases[phase]:
                del self._phases[phase]

    def use(self, now_ns: int) -> Use:
        """Since the last cut."""
        # An hour that begins now is the next use's, if this is the end of this one.
        self._advance(now_ns, now_ns // SECOND_NS)
        return Use(self._token_ns // MILLISECOND_NS, self._maximum, self._started)

    def cut(self, now_ns: int) -> Use:
        """The same, and begins anew."""
        found = self.use(now_ns)
        self._token_ns %= MILLISECOND_NS
        self._maximum = self._started = 0
        return found

    def _advance(self, now_ns: int, second: int) -> None:
        if now_ns > self._at_ns:
            self._token_ns += self.tokens * (now_ns - self._at_ns)
            self._maximum = max(self._maximum, self.tokens)
            self._at_ns = now_ns
        if second > self._second:
            self._started += self._begun(self._second, second)
            self._second = second

    def _begun(self, first: int, last: int) -> int:
        """Tokens whose hours begin in the seconds [first, last)."""
        whole, rest = divmod(last - first, HOUR_SECONDS)
        begun = whole * self.tokens
        if rest and self._phases:
            low = first % HOUR_SECONDS
            begun += sum(
                tokens
                for phase, tokens in self._phases.items()
                if (phase - low) % HOUR_SECONDS < rest
            )
        return begun

    def check_integrity(self) -> None:
        assert self.tokens == sum(self._phases.values()) >= 0
