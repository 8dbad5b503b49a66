"""What a replay found, as data. The keys of `data` are those of `kvtier replay --json`."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

__all__ = ["ReplayResult", "Savings", "WritesTurnedAway"]

RATE_PLACES = 4


@dataclass(frozen=True, slots=True)
class WritesTurnedAway:
    """What a rule or a budget kept from the SSD, and the hits that it is known to have cost."""

    blocks: int
    lost_hits: int


@dataclass(frozen=True, slots=True)
class Savings:
    """What hits save under a price book. Amounts in full precision."""

    currency: str
    price_book_version: str
    without_cache: Decimal
    with_cache: Decimal

    def data(self) -> dict[str, Any]:
        return {
            "currency": self.currency,
            "price_book_version": self.price_book_version,
            "input_without_cache": f"{self.without_cache:f}",
            "input_with_cache": f"{self.with_cache:f}",
            "saved": f"{self.without_cache - self.with_cache:f}",
        }


@dataclass(frozen=True, slots=True)
class ReplayResult:
    trace: str
    policy: str
    admission: str
    write_when: str
    block_tokens: int
    host_capacity_blocks: int
    ssd_capacity_blocks: int | None
    unique_blocks: int
    requests: int
    accesses: int
    hit_blocks: int
    host_hit_blocks: int
    input_tokens: int
    opt_hit_blocks: int | None
    ssd_block_writes: int
    ssd_relogged_blocks: int
    block_bytes: int
    host_evictions: int
    ssd_evictions: int
    stranded_blocks: int
    refused: WritesTurnedAway | None
    over_budget: WritesTurnedAway | None
    seconds: float
    savings: Savings | None = None

    @property
    def hit_tokens(self) -> int:
        return self.hit_blocks * self.block_tokens

    @property
    def ssd_bytes_written(self) -> int:
        return self.ssd_block_writes * self.block_bytes

    def block_rate(self, blocks: int) -> float:
        return _rate(blocks, self.accesses)

    @property
    def token_hit_rate(self) -> float:
        return _rate(self.hit_tokens, self.input_tokens)

    def data(self) -> dict[str, Any]:
        """Plain data for JSON; counts of blocks where a key has no unit."""
        capacity = {"host": self.host_capacity_blocks}
        evictions = {"host": self.host_evictions}
        if self.ssd_capacity_blocks is not None:
            capacity["ssd"] = self.ssd_capacity_blocks
            evictions["ssd"] = self.ssd_evictions
        return {
            "trace": self.trace,
            "policy": self.policy,
            "admission": self.admission,
            "write_when": self.write_when,
            "capacity_blocks": capacity,
            "unique_blocks": self.unique_blocks,
            "requests": self.requests,
            "accesses": self.accesses,
            "hit_blocks": self.hit_blocks,
            "block_hit_rate": self.block_rate(self.hit_blocks),
            "host_block_hit_rate": self.block_rate(self.host_hit_blocks),
            "input_tokens": self.input_tokens,
            "hit_tokens": self.hit_tokens,
            "token_hit_rate": self.token_hit_rate,
            "opt_block_hit_rate": _known(self.opt_hit_blocks, self.block_rate),
            "opt_distance": _known(
                self.opt_hit_blocks, lambda best: self.block_rate(best - self.hit_blocks)
            ),
            "ssd_block_writes": self.ssd_block_writes,
            "ssd_relogged_blocks": self.ssd_relogged_blocks,
            "block_bytes": self.block_bytes,
            "ssd_bytes_written": self.ssd_bytes_written,
            "evictions": evictions,
            "stranded_blocks": self.stranded_blocks,
            "refused_by_admission": _turned_away(self.refused, self.block_bytes),
            "turned_away_by_budget": _turned_away(self.over_budget, self.block_bytes),
            "savings": self.savings.data() if self.savings is not None else None,
            "seconds": round(self.seconds, 3),
        }


def _rate(part: int, whole: int) -> float:
    return round(part / whole, RATE_PLACES) if whole else 0.0


def _known(count: int | None, rate: Any) -> float | None:
    return None if count is None else rate(count)


def _turned_away(writes: WritesTurnedAway | None, block_bytes: int) -> dict[str, int] | None:
    if writes is None:
        return None
    return {
        "blocks": writes.blocks,
        "bytes": writes.blocks * block_bytes,
        "lost_hit_blocks": writes.lost_hits,
    }
