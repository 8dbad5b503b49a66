"""Errors of the worker room.

    WorkerError
    ├── CheckpointError              the directory is not a usable checkpoint
    ├── AdapterError                 the directory is not a usable LoRA adapter
    ├── AdapterRefusedError          it cannot be merged whole, or not into this model
    ├── DeviceUnavailableError       torch cannot compute on the device that is asked for
    ├── TransformersVersionError     the installed transformers is older than what is tested
    ├── ArchitectureRefusedError     its KV cannot be cached correctly
    ├── SelfTestFailedError          paged logits differ from the plain model's
    ├── DeterminismRefusedError      warm answers cannot be bit-equal to cold ones here
    ├── ModelUnknownError            this worker serves another model
    ├── AdapterUnknownError          this worker has no adapter of that name
    ├── TenantUnknownError           not in the worker's tenants
    ├── InvalidRequestIdError        empty or too long
    ├── InvalidScopeError            a project or user that cannot be one, or is missing
    ├── ScopeTooWideError            cache_scope is wider than what the tenant is granted
    ├── PriorityNotGrantedError      a priority outside of what the tenant may ask for
    ├── PromptEmptyError             no token to compute
    ├── PromptTooLongError           prompt and completion pass the context
    ├── TokenIdOutOfRangeError       not in the model's vocabulary
    ├── InvalidLimitError            a count that is negative or absurd
    ├── InvalidSamplingError         sampling values that contradict or make no sense
    ├── InvalidCacheControlError     words on the cache that contradict each other
    ├── InvalidMessagesError         unknown role or a chat the template refuses
    ├── QueueFullError               more requests wait than the worker allows
    ├── InsufficientBalanceError     it may cost more than what its tenant has left
    ├── BudgetExhaustedError         it may cost more than a limit leaves
    ├── QuotaExceededError           too many requests or tokens; says when again
    ├── PriceUnknownError            money is limited, and the model has no price
    ├── BudgetUnavailableError       billing cannot be asked whether it may be served
    ├── EngineFailedError            the engine gave up on the request
    ├── RequestDeadlineError         the request's deadline passed
    └── UsageJournalFailedError      the usage event could not be made durable

A journal's directory that cannot be used is `journal.errors`'. Codes: `worker/status.py`. Reasons
are frozen once released.
"""

from kvtier.errors import KvtierError

__all__ = [
    "AdapterError",
    "AdapterRefusedError",
    "AdapterUnknownError",
    "ArchitectureRefusedError",
    "BudgetExhaustedError",
    "BudgetUnavailableError",
    "CheckpointError",
    "DeterminismRefusedError",
    "DeviceUnavailableError",
    "EngineFailedError",
    "InsufficientBalanceError",
    "InvalidCacheControlError",
    "InvalidLimitError",
    "InvalidMessagesError",
    "InvalidRequestIdError",
    "InvalidSamplingError",
    "InvalidScopeError",
    "ModelUnknownError",
    "PriceUnknownError",
    "PriorityNotGrantedError",
    "PromptEmptyError",
    "PromptTooLongError",
    "QueueFullError",
    "QuotaExceededError",
    "RequestDeadlineError",
    "ScopeTooWideError",
    "SelfTestFailedError",
    "TenantUnknownError",
    "TokenIdOutOfRangeError",
    "TransformersVersionError",
    "UsageJournalFailedError",
    "WorkerError",
]


class WorkerError(KvtierError):
    reason = "WORKER"


class CheckpointError(WorkerError):
    reason = "CHECKPOINT_INVALID"


class AdapterError(WorkerError):
    reason = "ADAPTER_INVALID"


class AdapterRefusedError(WorkerError):
    reason = "ADAPTER_REFUSED"


class DeviceUnavailableError(WorkerError):
    reason = "DEVICE_UNAVAILABLE"


class TransformersVersionError(WorkerError):
    reason = "TRANSFORMERS_VERSION"


class ArchitectureRefusedError(WorkerError):
    reason = "ARCHITECTURE_REFUSED"


class SelfTestFailedError(WorkerError):
    reason = "SELF_TEST_FAILED"


class DeterminismRefusedError(WorkerError):
    reason = "DETERMINISM_REFUSED"


class ModelUnknownError(WorkerError):
    reason = "MODEL_UNKNOWN"


class AdapterUnknownError(WorkerError):
    reason = "ADAPTER_UNKNOWN"


class TenantUnknownError(WorkerError):
    reason = "TENANT_UNKNOWN"


class InvalidScopeError(WorkerError):
    reason = "INVALID_SCOPE"


class InvalidRequestIdError(WorkerError):
    reason = "INVALID_REQUEST_ID"


class ScopeTooWideError(WorkerError):
    reason = "SCOPE_TOO_WIDE"


class PriorityNotGrantedError(WorkerError):
    reason = "PRIORITY_NOT_GRANTED"


class PromptEmptyError(WorkerError):
    reason = "PROMPT_EMPTY"


class PromptTooLongError(WorkerError):
    reason = "PROMPT_TOO_LONG"


class TokenIdOutOfRangeError(WorkerError):
    reason = "TOKEN_ID_OUT_OF_RANGE"


class InvalidLimitError(WorkerError):
    reason = "INVALID_LIMIT"


class InvalidSamplingError(WorkerError):
    reason = "INVALID_SAMPLING"


class InvalidCacheControlError(WorkerError):
    reason = "INVALID_CACHE_CONTROL"


class InvalidMessagesError(WorkerError):
    reason = "INVALID_MESSAGES"


class QueueFullError(WorkerError):
    reason = "QUEUE_FULL"


class InsufficientBalanceError(WorkerError):
    reason = "INSUFFICIENT_BALANCE"


class BudgetExhaustedError(WorkerError):
    reason = "BUDGET_EXHAUSTED"


class QuotaExceededError(WorkerError):
    reason = "QUOTA_EXCEEDED"


class PriceUnknownError(WorkerError):
    reason = "PRICE_UNKNOWN"


class BudgetUnavailableError(WorkerError):
    reason = "BUDGET_UNAVAILABLE"


class EngineFailedError(WorkerError):
    reason = "ENGINE_FAILED"


class RequestDeadlineError(WorkerError):
    reason = "DEADLINE"


class UsageJournalFailedError(WorkerError):
    reason = "USAGE_JOURNAL_FAILED"
