"""The one table: billing errors -> gRPC status codes."""

from grpc import StatusCode

from billing.errors import (
    BillingError,
    BookRefusedError,
    CorrectionConflictError,
    CorrectionRefusedError,
    EventUnknownError,
    FundingConflictError,
    FundingRefusedError,
    InvalidGroupError,
    InvalidPeriodError,
    InvalidUsageError,
    LedgerForeignError,
    LedgerKeyError,
    LedgerLockedError,
    LedgerReadOnlyError,
    LedgerTooNewError,
    LedgerUnavailableError,
    PriceBookError,
    ReceiptAmbiguousError,
    TenantUnknownError,
    TermsError,
    TooManyEventsError,
    TooManyRowsError,
)
from kvtier.serving import StatusTable

__all__ = ["STATUS_TABLE"]

STATUS_TABLE: StatusTable = {
    BillingError: StatusCode.INTERNAL,
    PriceBookError: StatusCode.FAILED_PRECONDITION,
    BookRefusedError: StatusCode.INVALID_ARGUMENT,
    TermsError: StatusCode.FAILED_PRECONDITION,
    LedgerUnavailableError: StatusCode.UNAVAILABLE,
    LedgerLockedError: StatusCode.UNAVAILABLE,
    LedgerTooNewError: StatusCode.FAILED_PRECONDITION,
    LedgerReadOnlyError: StatusCode.UNAVAILABLE,
    LedgerForeignError: StatusCode.FAILED_PRECONDITION,
    LedgerKeyError: StatusCode.FAILED_PRECONDITION,
    TooManyEventsError: StatusCode.INVALID_ARGUMENT,
    InvalidPeriodError: StatusCode.INVALID_ARGUMENT,
    InvalidUsageError: StatusCode.INVALID_ARGUMENT,
    InvalidGroupError: StatusCode.INVALID_ARGUMENT,
    TooManyRowsError: StatusCode.INVALID_ARGUMENT,
    CorrectionRefusedError: StatusCode.FAILED_PRECONDITION,
    CorrectionConflictError: StatusCode.ALREADY_EXISTS,
    EventUnknownError: StatusCode.NOT_FOUND,
    FundingRefusedError: StatusCode.FAILED_PRECONDITION,
    FundingConflictError: StatusCode.ALREADY_EXISTS,
    ReceiptAmbiguousError: StatusCode.FAILED_PRECONDITION,
    TenantUnknownError: StatusCode.NOT_FOUND,
}
