"""Billing's types as messages of `kvtier.v1`, and back. Pure functions, any thread.

Invariant: what comes in is taken as it is, nonsense included, so that `meter` judges it and a
refused event can be kept; an enum number or time that has no meaning becomes None.
"""

from collections.abc import Iterable, Mapping

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from billing.entry import EntryHash
from billing.errors import InvalidPeriodError, InvalidUsageError
from billing.invoice import Invoice
from billing.ledger_verify import Verification
from billing.meter import Outcome, RecordStatus, Submission
from billing.money import to_text
from billing.period import Period
from billing.price_book import PriceVersion
from billing.price_card import CACHE_WRITE, RateCard, Selection
from billing.price_words import rules_of
from billing.quote import Quote
from billing.report import UsageRow
from billing.rerating import ReratedRow, Sum
from billing.usage import EndReason, StorageUse, TenantId, TokenCounts, UsageEvent
from billing.wire_correction import invoice_correction_message
from billing.wire_line import rated_line_message
from billing.wire_prompt_proof import proof_of
from kvtier.v1 import attestation_pb2, budget_pb2, usage_pb2

__all__ = [
    "end_time_of",
    "invoice_message",
    "outcome_message",
    "period_of",
    "quote_message",
    "rerate_row_message",
    "row_message",
    "submission_of",
    "tokens_of",
    "verification_message",
    "version_message",
]

_END_REASONS = {
    usage_pb2.END_REASON_STOP: EndReason.STOP,
    usage_pb2.END_REASON_LENGTH: EndReason.LENGTH,
    usage_pb2.END_REASON_CANCELLED: EndReason.CANCELLED,
    usage_pb2.END_REASON_DEADLINE: EndReason.DEADLINE,
    usage_pb2.END_REASON_ERROR: EndReason.ERROR,
    usage_pb2.END_REASON_WORKER_LOST: EndReason.WORKER_LOST,
}

_STATUSES = {
    RecordStatus.ACCEPTED: usage_pb2.RECORD_STATUS_ACCEPTED,
    RecordStatus.DUPLICATE: usage_pb2.RECORD_STATUS_DUPLICATE,
    RecordStatus.CONFLICT: usage_pb2.RECORD_STATUS_CONFLICT,
    RecordStatus.REJECTED: usage_pb2.RECORD_STATUS_REJECTED,
}

_NS = 10**9


def submission_of(message: usage_pb2.UsageEvent) -> Submission:
    has, lease_ids, proof, storage = message.HasField, None, None, None
    # A part is asked for where it is there: asking makes one that is not.
    if has("leases"):
        lease_ids = tuple(message.leases.ids)
    if has("proof"):
        proof = proof_of(message.proof)
    if has("storage"):
        storage = _storage(message.storage)
    event = UsageEvent(
        request_id=message.request_id,
        schema_version=message.schema_version,
        tenant_id=TenantId(message.tenant_id),
        model=message.model,
        start_time_ns=_ns(message.start_time) if has("start_time") else None,
        end_time_ns=_ns(message.end_time) if has("end_time") else None,
        end_reason=_END_REASONS.get(message.end_reason),
        tokens=tokens_of(message.tokens),
        node=message.node,
        client_request_id=message.client_request_id,
        ttft_ns=_ns(message.ttft) if has("ttft") else None,
        project_id=message.project_id if has("project_id") else None,
        user_id=message.user_id if has("user_id") else None,
        key_id=message.key_id if has("key_id") else None,
        session_id=message.session_id if has("session_id") else None,
        lease_ids=lease_ids,
        storage=storage,
        service_class=message.service_class if has("service_class") else None,
        proof=proof,
    )
    return Submission(event, message)


def _storage(message: usage_pb2.StorageUsage) -> StorageUse:
    def metered(tier: str) -> int | None:
        name = f"{tier}_token_seconds"
        return getattr(message, name) if message.HasField(name) else None

    return StorageUse(metered("gpu"), metered("host"), metered("ssd"), metered("shared"))


def tokens_of(tokens: usage_pb2.TokenUsage) -> TokenCounts:
    tiers = tokens.hit_tokens_by_tier
    return TokenCounts(
        prompt=tokens.prompt_tokens,
        hit=tokens.hit_tokens,
        hit_gpu=tiers.gpu,
        hit_host=tiers.host,
        hit_ssd=tiers.ssd,
        hit_shared=tiers.shared,
        miss=tokens.miss_tokens,
        output=tokens.completion_tokens,
        cache_write=tokens.cache_write_tokens,
        cache_write_ttl_class=tokens.cache_write_ttl_class,
    )


def end_time_of(message: usage_pb2.RateUsageRequest) -> int | None:
    """Nanoseconds; None: not given. Raises InvalidUsageError."""
    if not message.HasField("end_time"):
        return None
    nanoseconds = _ns(message.end_time)
    if not 0 <= nanoseconds < 2**63:
        raise InvalidUsageError("end_time is not between the years 1970 and 2262")
    return nanoseconds


def quote_message(quote: Quote) -> usage_pb2.RateUsageResponse:
    return usage_pb2.RateUsageResponse(
        amount=to_text(quote.amount),
        currency_code=quote.currency,
        saved_amount=to_text(quote.saved),
        price_book_version=quote.price_version,
        lines=map(rated_line_message, quote.lines),
        notes=quote.notes,
    )


def period_of(
    message: usage_pb2.GetUsageRequest
    | usage_pb2.GetInvoiceRequest
    | usage_pb2.ListChargesRequest
    | usage_pb2.RerateUsageRequest
    | attestation_pb2.ReconcileUsageRequest
    | budget_pb2.ListBudgetAlertsRequest,
) -> Period:
    """Raises InvalidPeriodError."""
    bounds: list[int | None] = []
    for name in ("start_time", "end_time"):
        time: Timestamp = getattr(message, name)
        if not message.HasField(name):
            bounds.append(None)
            continue
        nanoseconds = _ns(time)
        if not 0 <= nanoseconds < 2**63:
            raise InvalidPeriodError(f"{name} is not between the years 1970 and 2262")
        bounds.append(nanoseconds)
    return Period(bounds[0], bounds[1])


def outcome_message(outcome: Outcome) -> usage_pb2.RecordOutcome:
    return usage_pb2.RecordOutcome(
        request_id=outcome.request_id,
        status=_STATUSES[outcome.status],
        reason=outcome.reason,
        ledger_position=outcome.position,
    )


def row_message(row: UsageRow, group_by: tuple[str, ...]) -> usage_pb2.UsageRow:
    return usage_pb2.UsageRow(
        group=dict(zip(group_by, row.group, strict=True)),
        request_count=row.request_count,
        tokens=usage_pb2.TokenUsage(
            prompt_tokens=row.prompt,
            hit_tokens=row.hit,
            hit_tokens_by_tier=usage_pb2.HitTokensByTier(
                gpu=row.hit_gpu, host=row.hit_host, ssd=row.hit_ssd, shared=row.hit_shared
            ),
            miss_tokens=row.miss,
            completion_tokens=row.output,
            cache_write_tokens=sum(row.cache_writes.values()),
        ),
        amount=to_text(row.amount),
        currency_code=row.currency,
        corrected_amount=to_text(row.corrected),
        saved_amount=to_text(row.saved),
        net_saved_amount=to_text(row.net_saved),
        cache_writes=_cache_writes(row.cache_writes.items()),
        storage=[
            usage_pb2.StorageKept(tier=tier, token_milliseconds=kept)
            for tier, kept in sorted(row.storage.items())
        ],
    )


def _cache_writes(pairs: Iterable[tuple[str, int]]) -> list[usage_pb2.CacheWrites]:
    return [usage_pb2.CacheWrites(ttl_class=name, tokens=count) for name, count in sorted(pairs)]


def invoice_message(invoice: Invoice) -> usage_pb2.Invoice:
    """Amounts keep the decimals they were rounded to."""
    message = usage_pb2.Invoice(
        tenant_id=invoice.tenant_id,
        currency_code=invoice.currency,
        lines=[
            usage_pb2.InvoiceLine(
                model=line.model,
                token_class=line.token_class,
                quantity_tokens=line.quantity_tokens,
                unit_price=to_text(line.unit_price),
                unit_tokens=line.unit_tokens,
                amount=format(line.amount, "f"),
                price_book_version=line.price_version,
                cache_write_ttl_class=line.cache_write_ttl_class,
                rule=line.rule,
            )
            for line in invoice.lines
        ],
        total_amount=format(invoice.total, "f"),
        saved_amount=format(invoice.saved, "f"),
        net_saved_amount=format(invoice.net_saved, "f"),
        request_count=invoice.request_count,
        unrated_request_count=invoice.unrated_request_count,
        cache_writes=_cache_writes(invoice.cache_writes),
        adjustments=[
            usage_pb2.InvoiceAdjustment(
                kind=each.kind.value,
                name=each.name,
                amount=format(each.amount, "f"),
                quantity=each.quantity,
            )
            for each in invoice.adjustments
        ],
        corrections=map(invoice_correction_message, invoice.corrections),
    )
    if invoice.terms is not None:
        message.terms, message.terms_hash = invoice.terms.name, invoice.terms.id
    for state in invoice.credits:
        credit = message.credits.add(name=state.credit.name, left_amount=to_text(state.left))
        credit.expire_time.FromNanoseconds(state.credit.end_ns)
    if invoice.period.start_ns is not None:
        message.start_time.FromNanoseconds(invoice.period.start_ns)
    if invoice.period.end_ns is not None:
        message.end_time.FromNanoseconds(invoice.period.end_ns)
    return message


def rerate_row_message(row: ReratedRow, group_by: tuple[str, ...]) -> usage_pb2.RerateRow:
    return usage_pb2.RerateRow(
        group=dict(zip(group_by, row.group, strict=True)),
        charged=_sums(row.charged),
        rerated=_sums(row.rerated),
    )


def _sums(sums: Mapping[str, Sum]) -> list[usage_pb2.RateSum]:
    return [
        usage_pb2.RateSum(
            currency_code=currency,
            amount=to_text(each.amount),
            saved_amount=to_text(each.saved),
            request_count=each.request_count,
        )
        for currency, each in sorted(sums.items())
    ]


def verification_message(found: Verification) -> usage_pb2.VerifyLedgerResponse:
    return usage_pb2.VerifyLedgerResponse(
        entry_count=found.entry_count,
        posting_count=found.posting_count,
        verified=not found.problem,
        first_broken_position=found.broken_position,
        problem=found.problem,
        unrated_count=found.unrated_count,
        refused_count=found.refused_count,
        head_hash=EntryHash(found.head.hash).hex(),
        checkpoint_count=found.checkpoint_count,
    )


def version_message(version: PriceVersion) -> usage_pb2.PriceBookVersion:
    message = usage_pb2.PriceBookVersion(
        version=version.name,
        currency_code=version.currency,
        source=version.source,
        invoice_decimals=version.invoice_decimals,
        prices=map(_price_message, version.cards),
        content_hash=version.id,
    )
    message.effective_time.FromNanoseconds(version.effective_time_ns)
    return message


def _price_message(card: RateCard) -> usage_pb2.ModelPrice:
    """Base rates, and in words what changes them."""
    rates = {meter: to_text(rate) for meter, rate in card.rates(Selection()).items()}
    write = f"{CACHE_WRITE}:"
    return usage_pb2.ModelPrice(
        model_pattern=card.model_pattern,
        hit_price=rates["hit"],
        miss_price=rates["miss"],
        output_price=rates["output"],
        unit_tokens=card.per,
        cache_write_prices={
            meter.removeprefix(write): rate
            for meter, rate in rates.items()
            if meter.startswith(write)
        },
        rules=rules_of(card),
    )


def _ns(time: Timestamp | Duration) -> int:
    return time.seconds * _NS + time.nanos
