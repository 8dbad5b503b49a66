"""What the demo found out: frozen data, and its JSON form. Pure.

The JSON keys are a contract that programs read; they only grow.
"""

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from kvtier.v1 import usage_pb2

__all__ = ["DemoResult", "Restart", "TenantBill", "Turn"]

TIERS = ("gpu", "host", "ssd")


@dataclass(slots=True)
class Turn:
    """One request of the conversation and what its reply said."""

    name: str
    tenant: str
    request_id: str
    prompt_tokens: int
    hit_tokens: int
    hit_tokens_by_tier: dict[str, int]
    miss_tokens: int
    completion_tokens: int
    ttft_seconds: float
    miss_reason: str
    tokens_equal_cold: bool | None = None
    """Set when the same prompt was computed without any cache."""

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Restart:
    """The crash: SSD blocks before it and after it, and how long recovery took."""

    blocks_before: int
    blocks_after: int
    recovery_seconds: float
    dropped_blocks: int
    restart_seconds: float
    """From starting the processes to serving again."""

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class TenantBill:
    """A tenant's report row and invoice as the billing service gave them."""

    tenant: str
    usage: usage_pb2.UsageRow
    invoice: usage_pb2.Invoice

    def as_json(self) -> dict[str, Any]:
        return {
            "tenant": self.tenant,
            "currency": self.invoice.currency_code,
            "total": self.invoice.total_amount,
            "saved": self.invoice.saved_amount,
            "request_count": self.invoice.request_count,
            "lines": [
                {
                    "model": line.model,
                    "token_class": line.token_class,
                    "quantity_tokens": line.quantity_tokens,
                    "unit_price": line.unit_price,
                    "unit_tokens": line.unit_tokens,
                    "amount": line.amount,
                    "price_book_version": line.price_book_version,
                }
                for line in self.invoice.lines
            ],
        }

    @property
    def lines_total(self) -> Decimal:
        return sum((Decimal(line.amount) for line in self.invoice.lines), Decimal(0))


@dataclass(slots=True)
class DemoResult:
    """Everything the demo shows."""

    document: str = ""
    document_tokens: int = 0
    model: str = ""
    turns: list[Turn] = field(default_factory=list)
    interrupted_request_id: str = ""
    restart: Restart | None = None
    bills: list[TenantBill] = field(default_factory=list)
    checks: dict[str, bool] = field(default_factory=dict)
    seconds: float = 0.0

    def turn(self, name: str) -> Turn:
        return next(t for t in self.turns if t.name == name)

    def as_json(self) -> dict[str, Any]:
        return {
            "document": self.document,
            "document_tokens": self.document_tokens,
            "model": self.model,
            "turns": [t.as_json() for t in self.turns],
            "interrupted_request_id": self.interrupted_request_id,
            "restart": self.restart.as_json() if self.restart else None,
            "invoices": [b.as_json() for b in self.bills],
            "checks": self.checks,
            "seconds": self.seconds,
        }
