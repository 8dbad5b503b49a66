"""Errors of the billing room.

    BillingError
    ├── PriceBookError               the book does not hold together; names the line
    ├── TermsError                   the terms do not hold together; names the line
    ├── LedgerUnavailableError       the database refuses; send again
    ├── LedgerLockedError            another billing service has it open
    ├── LedgerTooNewError            written by a newer kvtier
    ├── LedgerReadOnlyError          the directory or file cannot be written
    ├── LedgerForeignError           the file is not a ledger of kvtier
    ├── LedgerKeyError               the key that signs checkpoints is gone, or not the one
    ├── TooManyEventsError           over 1,000 events in a call
    ├── InvalidPeriodError           start is not before end
    ├── InvalidUsageError            tokens or a time that cannot be rated
    ├── BookRefusedError             a caller's book does not hold together; names the line
    ├── InvalidGroupError            no such dimension, or twice the same
    ├── TooManyRowsError             a report over 20,000 rows
    ├── CorrectionRefusedError       it does not fit the entry, or says too little
    ├── CorrectionConflictError      another correction has that id
    ├── EventUnknownError            no entry has that id
    ├── FundingRefusedError          it says too little, or the balance does not take it
    ├── FundingConflictError         another funding has that id
    ├── ReceiptAmbiguousError        several requests have that name
    ├── BudgetRefusedError           it says too little, or what cannot be
    ├── BudgetConflictError          that id set another budget
    ├── InsufficientBalanceError     a request may cost more than what is left
    ├── BudgetExhaustedError         a request may cost more than its limit leaves
    ├── QuotaExceededError           too many requests or tokens; says when again
    ├── PriceUnknownError            a limit of money, and a model without a price
    ├── InvalidReservationError      what no event can settle
    ├── ReservationConflictError     something else is held, or it has ended
    ├── ReservationsFullError        too many requests are under way
    └── TenantUnknownError           has no posting

Codes: `billing/status.py`. Reasons are frozen once released.
"""

from kvtier.errors import KvtierError

__all__ = [
    "BillingError",
    "BookRefusedError",
    "BudgetConflictError",
    "BudgetExhaustedError",
    "BudgetRefusedError",
    "CorrectionConflictError",
    "CorrectionRefusedError",
    "EventUnknownError",
    "FundingConflictError",
    "FundingRefusedError",
    "InsufficientBalanceError",
    "InvalidGroupError",
    "InvalidPeriodError",
    "InvalidReservationError",
    "InvalidUsageError",
    "LedgerForeignError",
    "LedgerKeyError",
    "LedgerLockedError",
    "LedgerReadOnlyError",
    "LedgerTooNewError",
    "LedgerUnavailableError",
    "PriceBookError",
    "PriceUnknownError",
    "QuotaExceededError",
    "ReceiptAmbiguousError",
    "ReservationConflictError",
    "ReservationsFullError",
    "TenantUnknownError",
    "TermsError",
    "TooManyEventsError",
    "TooManyRowsError",
]


class BillingError(KvtierError):
    reason = "BILLING"


class PriceBookError(BillingError):
    reason = "PRICE_BOOK_INVALID"


class BookRefusedError(BillingError):
    reason = "BOOK_REFUSED"


class TermsError(BillingError):
    reason = "TERMS_INVALID"


class LedgerUnavailableError(BillingError):
    reason = "LEDGER_UNAVAILABLE"


class LedgerLockedError(BillingError):
    reason = "LEDGER_LOCKED"


class LedgerTooNewError(BillingError):
    reason = "FORMAT_TOO_NEW"


class LedgerReadOnlyError(BillingError):
    reason = "LEDGER_READ_ONLY"


class LedgerForeignError(BillingError):
    reason = "LEDGER_FOREIGN"


class LedgerKeyError(BillingError):
    reason = "LEDGER_KEY"


class TooManyEventsError(BillingError):
    reason = "TOO_MANY_EVENTS"


class InvalidPeriodError(BillingError):
    reason = "INVALID_PERIOD"


class InvalidUsageError(BillingError):
    reason = "INVALID_USAGE"


class InvalidGroupError(BillingError):
    reason = "INVALID_GROUP"


class TooManyRowsError(BillingError):
    reason = "TOO_MANY_ROWS"


class CorrectionRefusedError(BillingError):
    reason = "CORRECTION_REFUSED"


class CorrectionConflictError(BillingError):
    reason = "CORRECTION_CONFLICT"


class EventUnknownError(BillingError):
    reason = "EVENT_UNKNOWN"


class FundingRefusedError(BillingError):
    reason = "FUNDING_REFUSED"


class FundingConflictError(BillingError):
    reason = "FUNDING_CONFLICT"


class BudgetRefusedError(BillingError):
    reason = "BUDGET_REFUSED"


class BudgetConflictError(BillingError):
    reason = "BUDGET_CONFLICT"


class InsufficientBalanceError(BillingError):
    reason = "INSUFFICIENT_BALANCE"


class BudgetExhaustedError(BillingError):
    reason = "BUDGET_EXHAUSTED"


class QuotaExceededError(BillingError):
    reason = "QUOTA_EXCEEDED"


class PriceUnknownError(BillingError):
    reason = "PRICE_UNKNOWN"


class InvalidReservationError(BillingError):
    reason = "INVALID_RESERVATION"


class ReservationConflictError(BillingError):
    reason = "RESERVATION_CONFLICT"


class ReservationsFullError(BillingError):
    reason = "RESERVATIONS_FULL"


class TenantUnknownError(BillingError):
    reason = "TENANT_UNKNOWN"


class ReceiptAmbiguousError(BillingError):
    reason = "RECEIPT_AMBIGUOUS"
