"""The one table: the worker's errors -> gRPC status codes. Pure data."""

import grpc

from kvtier.serving import StatusTable
from worker import errors

__all__ = ["STATUS_TABLE"]

_Code = grpc.StatusCode

STATUS_TABLE: StatusTable = {
    errors.WorkerError: _Code.INTERNAL,
    errors.CheckpointError: _Code.FAILED_PRECONDITION,
    errors.AdapterError: _Code.FAILED_PRECONDITION,
    errors.AdapterRefusedError: _Code.FAILED_PRECONDITION,
    errors.DeviceUnavailableError: _Code.FAILED_PRECONDITION,
    errors.TransformersVersionError: _Code.FAILED_PRECONDITION,
    errors.ArchitectureRefusedError: _Code.FAILED_PRECONDITION,
    errors.SelfTestFailedError: _Code.FAILED_PRECONDITION,
    errors.DeterminismRefusedError: _Code.FAILED_PRECONDITION,
    errors.ModelUnknownError: _Code.NOT_FOUND,
    errors.AdapterUnknownError: _Code.NOT_FOUND,
    errors.TenantUnknownError: _Code.NOT_FOUND,
    errors.InvalidScopeError: _Code.INVALID_ARGUMENT,
    errors.InvalidRequestIdError: _Code.INVALID_ARGUMENT,
    errors.ScopeTooWideError: _Code.PERMISSION_DENIED,
    errors.PriorityNotGrantedError: _Code.PERMISSION_DENIED,
    errors.PromptEmptyError: _Code.INVALID_ARGUMENT,
    errors.PromptTooLongError: _Code.OUT_OF_RANGE,
    errors.TokenIdOutOfRangeError: _Code.INVALID_ARGUMENT,
    errors.InvalidLimitError: _Code.INVALID_ARGUMENT,
    errors.InvalidSamplingError: _Code.INVALID_ARGUMENT,
    errors.InvalidCacheControlError: _Code.INVALID_ARGUMENT,
    errors.InvalidMessagesError: _Code.INVALID_ARGUMENT,
    errors.QueueFullError: _Code.RESOURCE_EXHAUSTED,
    errors.InsufficientBalanceError: _Code.FAILED_PRECONDITION,
    errors.BudgetExhaustedError: _Code.FAILED_PRECONDITION,
    errors.QuotaExceededError: _Code.RESOURCE_EXHAUSTED,
    errors.PriceUnknownError: _Code.FAILED_PRECONDITION,
    errors.BudgetUnavailableError: _Code.UNAVAILABLE,
    errors.EngineFailedError: _Code.INTERNAL,
    errors.RequestDeadlineError: _Code.DEADLINE_EXCEEDED,
    errors.UsageJournalFailedError: _Code.INTERNAL,
}
