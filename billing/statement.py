"""What commands print, as plain data: one shape for table, CSV and JSON.

Invariant: amounts are the service's own decimal text, carried through unchanged, so the formats
agree to the last digit; the only sums made here are totals, exact, in `Decimal`. Pure functions.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from billing.money import EXACT, to_text
from billing.price_statement import line_data
from billing.usage import TIERS
from kvtier.v1 import usage_pb2

__all__ = [
    "REPORT_FIGURES",
    "book_data",
    "correction_data",
    "entry_data",
    "invoice_data",
    "invoice_rows",
    "report_data",
    "token_data",
    "verification_data",
]

REPORT_FIGURES = (
    "request_count",
    "prompt_tokens",
    "hit_tokens",
    "miss_tokens",
    "output_tokens",
    "cache_writes",
    "hit_rate",
    "amount",
    "corrected",
    "saved",
    "net_saved",
    "storage_token_seconds",
    "currency",
)
"""Keys of a report's row, after those of its group."""

_COUNTS = ("request_count", "prompt_tokens", "hit_tokens", "miss_tokens", "output_tokens")


def report_data(
    response: usage_pb2.GetUsageResponse, group_by: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """`rows`, and `totals`: one per currency."""
    rows = [_row(message, group_by) for message in response.rows]
    currencies = list(dict.fromkeys(row["currency"] for row in rows))
    totals = [_total([row for row in rows if row["currency"] == c], c) for c in currencies]
    return {"rows": rows, "totals": totals}


def invoice_data(invoice: usage_pb2.Invoice) -> dict[str, Any]:
    period = {
        name: getattr(invoice, f"{name}_time").ToJsonString()
        if invoice.HasField(f"{name}_time")
        else None
        for name in ("start", "end")
    }
    return {
        "tenant": invoice.tenant_id,
        "period": period,
        "currency": invoice.currency_code,
        "total": invoice.total_amount,
        "saved": invoice.saved_amount,
        "net_saved": invoice.net_saved_amount,
        "request_count": invoice.request_count,
        "unrated_request_count": invoice.unrated_request_count,
        "cache_writes": _cache_writes(invoice.cache_writes),
        "corrections": [correction_data(each) for each in invoice.corrections],
        "lines": [
            {
                "model": line.model,
                "token_class": line.token_class,
                "cache_write_ttl_class": line.cache_write_ttl_class,
                "quantity_tokens": line.quantity_tokens,
                "unit_price": line.unit_price,
                "unit_tokens": line.unit_tokens,
                "amount": line.amount,
                "price_book_version": line.price_book_version,
                "rule": line.rule,
            }
            for line in invoice.lines
        ],
        "terms": invoice.terms,
        "terms_hash": invoice.terms_hash,
        "adjustments": [
            {
                "kind": each.kind,
                "name": each.name,
                "quantity": each.quantity,
                "amount": each.amount,
            }
            for each in invoice.adjustments
        ],
        "credits": [
            {
                "name": each.name,
                "left": each.left_amount,
                "expires": each.expire_time.ToJsonString(),
            }
            for each in invoice.credits
        ],
    }


def invoice_rows(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Lines, then adjustments and corrections in the shape of lines, so that amounts add up to the
    total."""
    blank = dict.fromkeys(("cache_write_ttl_class", "unit_price", "unit_tokens"), "")
    return [
        *data["lines"],
        *(
            {
                **blank,
                "model": "",
                "token_class": each["kind"],
                "quantity_tokens": each["quantity"],
                "amount": each["amount"],
                "price_book_version": data["terms"],
                "rule": each["name"],
            }
            for each in data["adjustments"]
        ),
        *(
            {
                **blank,
                "model": each["request_id"],
                "token_class": each["kind"],
                "quantity_tokens": "",
                "amount": each["amount"],
                "price_book_version": "",
                "rule": each["reason"],
            }
            for each in data["corrections"]
        ),
    ]


def correction_data(correction: usage_pb2.Correction) -> dict[str, Any]:
    return {
        "correction_id": correction.correction_id,
        "request_id": correction.request_id,
        "kind": usage_pb2.CorrectionKind.Name(correction.kind)
        .removeprefix("CORRECTION_KIND_")
        .lower(),
        "reason": correction.reason,
        "operator": correction.operator,
        "amount": correction.amount,
        "currency": correction.currency_code,
        "position": correction.ledger_position,
        "corrects": correction.corrected_position,
        "time": correction.create_time.ToJsonString(),
    }


def entry_data(entry: usage_pb2.LedgerEntry) -> dict[str, Any]:
    """Null is what nobody said, or does not apply; "" and 0 are what was said."""
    event, tokens = entry.event, entry.event.tokens

    def said(name: str) -> str | None:
        return getattr(event, name) if event.HasField(name) else None

    return {
        "position": entry.position,
        "request_id": event.request_id,
        "client_request_id": event.client_request_id,
        "tenant": event.tenant_id,
        "project": said("project_id"),
        "user": said("user_id"),
        "key": said("key_id"),
        "session": said("session_id"),
        "service_class": said("service_class"),
        "model": event.model,
        "node": event.node,
        "start_time": event.start_time.ToJsonString(),
        "end_time": event.end_time.ToJsonString(),
        "end_reason": usage_pb2.EndReason.Name(event.end_reason).removeprefix("END_REASON_"),
        "ttft_seconds": event.ttft.ToNanoseconds() / 1e9 if event.HasField("ttft") else None,
        **token_data(tokens),
        "cache_write_tokens": tokens.cache_write_tokens,
        "cache_write_ttl_class": tokens.cache_write_ttl_class,
        "storage_token_seconds": _storage_data(event),
        "leases": list(event.leases.ids) if event.HasField("leases") else None,
        "amount": entry.amount,
        "currency": entry.currency_code,
        "price_book_version": entry.price_book_version,
        "lines": [line_data(line) for line in entry.lines],
        "notes": list(entry.notes),
        "record_time": entry.record_time.ToJsonString(),
        "hash": entry.hash.hex(),
        "corrections": [correction_data(each) for each in entry.corrections],
    }


def token_data(tokens: usage_pb2.TokenUsage) -> dict[str, Any]:
    """The classes that every token is in exactly one of."""
    return {
        "prompt_tokens": tokens.prompt_tokens,
        "hit_tokens": tokens.hit_tokens,
        "hit_tokens_by_tier": {tier: getattr(tokens.hit_tokens_by_tier, tier) for tier in TIERS},
        "miss_tokens": tokens.miss_tokens,
        "output_tokens": tokens.completion_tokens,
    }


def _storage_data(event: usage_pb2.UsageEvent) -> dict[str, int | None] | None:
    if not event.HasField("storage"):
        return None
    names = {tier: f"{tier}_token_seconds" for tier in TIERS}
    kept = event.storage
    return {
        tier: getattr(kept, name) if kept.HasField(name) else None for tier, name in names.items()
    }


def verification_data(found: usage_pb2.VerifyLedgerResponse) -> dict[str, Any]:
    """`first_broken`: null when all holds; 0 is a place beside the chain of entries."""
    return {
        "verified": found.verified,
        "entries": found.entry_count,
        "postings": found.posting_count,
        "checkpoints": found.checkpoint_count,
        "unrated": found.unrated_count,
        "refused": found.refused_count,
        "head_hash": found.head_hash,
        "first_broken": None if found.verified else found.first_broken_position,
        "problem": found.problem,
    }


def book_data(response: usage_pb2.GetPriceBookResponse) -> dict[str, Any]:
    return {
        "versions": [
            {
                "version": version.version,
                "effective_time": version.effective_time.ToJsonString(),
                "currency": version.currency_code,
                "source": version.source,
                "invoice_decimals": version.invoice_decimals,
                "content_hash": version.content_hash,
                "prices": [
                    {
                        "model": price.model_pattern,
                        "hit": price.hit_price,
                        "miss": price.miss_price,
                        "output": price.output_price,
                        "cache_write": dict(price.cache_write_prices),
                        "unit_tokens": price.unit_tokens,
                        "rules": list(price.rules),
                    }
                    for price in version.prices
                ],
            }
            for version in response.versions
        ]
    }


def _cache_writes(writes: Iterable[usage_pb2.CacheWrites]) -> dict[str, int]:
    """Tokens by TTL class; "" is without an end."""
    return {each.ttl_class: each.tokens for each in writes}


def _row(message: usage_pb2.UsageRow, group_by: Sequence[str]) -> dict[str, Any]:
    tokens = message.tokens
    return {
        **{name: message.group[name] for name in group_by},
        "request_count": message.request_count,
        "prompt_tokens": tokens.prompt_tokens,
        "hit_tokens": tokens.hit_tokens,
        "miss_tokens": tokens.miss_tokens,
        "output_tokens": tokens.completion_tokens,
        "cache_writes": _cache_writes(message.cache_writes),
        "hit_rate": _hit_rate(tokens.hit_tokens, tokens.prompt_tokens),
        "amount": message.amount,
        "corrected": message.corrected_amount,
        "saved": message.saved_amount,
        "net_saved": message.net_saved_amount,
        "storage_token_seconds": {
            each.tier: _seconds(each.token_milliseconds) for each in message.storage
        },
        "currency": message.currency_code,
    }


def _total(rows: Sequence[Mapping[str, Any]], currency: str) -> dict[str, Any]:
    total: dict[str, Any] = {name: sum(row[name] for row in rows) for name in _COUNTS}
    written = Counter[str]()
    for row in rows:
        written.update(row["cache_writes"])
    total["cache_writes"] = dict(sorted(written.items()))
    total["hit_rate"] = _hit_rate(total["hit_tokens"], total["prompt_tokens"])
    kept: dict[str, Decimal] = {}
    for row in rows:
        for tier, seconds in row["storage_token_seconds"].items():
            kept[tier] = EXACT.add(kept.get(tier, Decimal(0)), Decimal(seconds))
    total["storage_token_seconds"] = {tier: to_text(kept[tier]) for tier in sorted(kept)}
    for name in ("amount", "corrected", "saved", "net_saved"):
        exact = Decimal(0)
        for row in rows:
            exact = EXACT.add(exact, Decimal(row[name]))
        total[name] = to_text(exact)
    return {**total, "currency": currency}


def _seconds(milliseconds: int) -> str:
    return to_text(EXACT.scaleb(Decimal(milliseconds), -3))


def _hit_rate(hit_tokens: int, prompt_tokens: int) -> float | None:
    """Of prompt tokens, in [0, 1]; None when there were none. A ratio, not money."""
    return round(hit_tokens / prompt_tokens, 6) if prompt_tokens else None
