"""Corrections as messages of `kvtier.v1`, and back. Pure functions, any thread."""

from decimal import Decimal

from billing.corrected import CorrectedEntry
from billing.correcting import Corrected
from billing.correction import Correction, CorrectionAsk, CorrectionKind
from billing.errors import CorrectionRefusedError
from billing.money import parse_price, to_text
from kvtier.v1 import usage_pb2

__all__ = ["ask_of", "corrected_message", "correction_message", "invoice_correction_message"]


def ask_of(request: usage_pb2.CorrectUsageRequest) -> CorrectionAsk:
    """Raises CorrectionRefusedError for a kind or amount that is none."""
    name = usage_pb2.CorrectionKind.Name(request.kind) if request.kind in _NUMBERS else ""
    amount: Decimal | None = None
    try:
        kind = CorrectionKind[name.removeprefix("CORRECTION_KIND_")]
        amount = parse_price(request.amount) if request.amount else None
    except (KeyError, ValueError) as error:
        raise CorrectionRefusedError(f"not a kind or an amount: {error}") from None
    return CorrectionAsk(
        correction_id=request.correction_id,
        kind=kind,
        request_id=request.request_id,
        reason=request.reason,
        operator=request.operator,
        amount=amount,
        currency=request.currency_code,
    )


def corrected_message(made: Corrected) -> usage_pb2.CorrectUsageResponse:
    message = _message(made.correction, made.position, to_text(made.correction.amount))
    return usage_pb2.CorrectUsageResponse(correction=message, already_there=made.again)


def correction_message(found: CorrectedEntry) -> usage_pb2.Correction:
    return _message(found.correction, found.position, to_text(found.correction.amount))


def invoice_correction_message(found: CorrectedEntry) -> usage_pb2.Correction:
    return _message(found.correction, found.position, format(found.line_amount, "f"))


def _message(correction: Correction, position: int, amount: str) -> usage_pb2.Correction:
    ask = correction.ask
    message = usage_pb2.Correction(
        correction_id=ask.correction_id,
        request_id=ask.request_id,
        kind=f"CORRECTION_KIND_{ask.kind.name}",
        reason=ask.reason,
        operator=ask.operator,
        amount=amount,
        currency_code=correction.currency,
        ledger_position=position,
        corrected_position=correction.corrects,
    )
    message.create_time.FromNanoseconds(correction.time_ns)
    return message


_NUMBERS = frozenset(usage_pb2.CorrectionKind.values())
