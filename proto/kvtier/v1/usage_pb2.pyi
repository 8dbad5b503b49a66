import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EndReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    END_REASON_UNSPECIFIED: _ClassVar[EndReason]
    END_REASON_STOP: _ClassVar[EndReason]
    END_REASON_LENGTH: _ClassVar[EndReason]
    END_REASON_CANCELLED: _ClassVar[EndReason]
    END_REASON_DEADLINE: _ClassVar[EndReason]
    END_REASON_ERROR: _ClassVar[EndReason]
    END_REASON_WORKER_LOST: _ClassVar[EndReason]

class RecordStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RECORD_STATUS_UNSPECIFIED: _ClassVar[RecordStatus]
    RECORD_STATUS_ACCEPTED: _ClassVar[RecordStatus]
    RECORD_STATUS_DUPLICATE: _ClassVar[RecordStatus]
    RECORD_STATUS_CONFLICT: _ClassVar[RecordStatus]
    RECORD_STATUS_REJECTED: _ClassVar[RecordStatus]

class CorrectionKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CORRECTION_KIND_UNSPECIFIED: _ClassVar[CorrectionKind]
    CORRECTION_KIND_CREDIT: _ClassVar[CorrectionKind]
    CORRECTION_KIND_CHARGE: _ClassVar[CorrectionKind]
    CORRECTION_KIND_REVERSE: _ClassVar[CorrectionKind]
    CORRECTION_KIND_SETTLE: _ClassVar[CorrectionKind]
END_REASON_UNSPECIFIED: EndReason
END_REASON_STOP: EndReason
END_REASON_LENGTH: EndReason
END_REASON_CANCELLED: EndReason
END_REASON_DEADLINE: EndReason
END_REASON_ERROR: EndReason
END_REASON_WORKER_LOST: EndReason
RECORD_STATUS_UNSPECIFIED: RecordStatus
RECORD_STATUS_ACCEPTED: RecordStatus
RECORD_STATUS_DUPLICATE: RecordStatus
RECORD_STATUS_CONFLICT: RecordStatus
RECORD_STATUS_REJECTED: RecordStatus
CORRECTION_KIND_UNSPECIFIED: CorrectionKind
CORRECTION_KIND_CREDIT: CorrectionKind
CORRECTION_KIND_CHARGE: CorrectionKind
CORRECTION_KIND_REVERSE: CorrectionKind
CORRECTION_KIND_SETTLE: CorrectionKind

class TokenUsage(_message.Message):
    __slots__ = ("prompt_tokens", "hit_tokens", "hit_tokens_by_tier", "miss_tokens", "completion_tokens", "cache_write_tokens", "cache_write_ttl_class")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    HIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    HIT_TOKENS_BY_TIER_FIELD_NUMBER: _ClassVar[int]
    MISS_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHE_WRITE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHE_WRITE_TTL_CLASS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    hit_tokens: int
    hit_tokens_by_tier: HitTokensByTier
    miss_tokens: int
    completion_tokens: int
    cache_write_tokens: int
    cache_write_ttl_class: str
    def __init__(self, prompt_tokens: _Optional[int] = ..., hit_tokens: _Optional[int] = ..., hit_tokens_by_tier: _Optional[_Union[HitTokensByTier, _Mapping]] = ..., miss_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., cache_write_tokens: _Optional[int] = ..., cache_write_ttl_class: _Optional[str] = ...) -> None: ...

class CacheWrites(_message.Message):
    __slots__ = ("ttl_class", "tokens")
    TTL_CLASS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    ttl_class: str
    tokens: int
    def __init__(self, ttl_class: _Optional[str] = ..., tokens: _Optional[int] = ...) -> None: ...

class HitTokensByTier(_message.Message):
    __slots__ = ("gpu", "host", "ssd", "shared")
    GPU_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    SSD_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    gpu: int
    host: int
    ssd: int
    shared: int
    def __init__(self, gpu: _Optional[int] = ..., host: _Optional[int] = ..., ssd: _Optional[int] = ..., shared: _Optional[int] = ...) -> None: ...

class UsageEvent(_message.Message):
    __slots__ = ("request_id", "schema_version", "tenant_id", "model", "start_time", "end_time", "end_reason", "tokens", "node", "client_request_id", "ttft", "project_id", "user_id", "key_id", "session_id", "leases", "storage", "service_class", "proof")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    END_REASON_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    CLIENT_REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TTFT_FIELD_NUMBER: _ClassVar[int]
    PROJECT_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    STORAGE_FIELD_NUMBER: _ClassVar[int]
    SERVICE_CLASS_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    schema_version: int
    tenant_id: str
    model: str
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    end_reason: EndReason
    tokens: TokenUsage
    node: str
    client_request_id: str
    ttft: _duration_pb2.Duration
    project_id: str
    user_id: str
    key_id: str
    session_id: str
    leases: LeaseIds
    storage: StorageUsage
    service_class: str
    proof: PromptProof
    def __init__(self, request_id: _Optional[str] = ..., schema_version: _Optional[int] = ..., tenant_id: _Optional[str] = ..., model: _Optional[str] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_reason: _Optional[_Union[EndReason, str]] = ..., tokens: _Optional[_Union[TokenUsage, _Mapping]] = ..., node: _Optional[str] = ..., client_request_id: _Optional[str] = ..., ttft: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., project_id: _Optional[str] = ..., user_id: _Optional[str] = ..., key_id: _Optional[str] = ..., session_id: _Optional[str] = ..., leases: _Optional[_Union[LeaseIds, _Mapping]] = ..., storage: _Optional[_Union[StorageUsage, _Mapping]] = ..., service_class: _Optional[str] = ..., proof: _Optional[_Union[PromptProof, _Mapping]] = ...) -> None: ...

class PromptProof(_message.Message):
    __slots__ = ("scheme", "block_tokens", "commitment", "namespace_mark", "runs", "digest_block_count", "digests")
    SCHEME_FIELD_NUMBER: _ClassVar[int]
    BLOCK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMMITMENT_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_MARK_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_BLOCK_COUNT_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    scheme: int
    block_tokens: int
    commitment: bytes
    namespace_mark: bytes
    runs: _containers.RepeatedCompositeFieldContainer[BlockRun]
    digest_block_count: int
    digests: bytes
    def __init__(self, scheme: _Optional[int] = ..., block_tokens: _Optional[int] = ..., commitment: _Optional[bytes] = ..., namespace_mark: _Optional[bytes] = ..., runs: _Optional[_Iterable[_Union[BlockRun, _Mapping]]] = ..., digest_block_count: _Optional[int] = ..., digests: _Optional[bytes] = ...) -> None: ...

class BlockRun(_message.Message):
    __slots__ = ("gpu_block_count", "host_block_count", "ssd_block_count", "shared_block_count", "computed_block_count", "digest")
    GPU_BLOCK_COUNT_FIELD_NUMBER: _ClassVar[int]
    HOST_BLOCK_COUNT_FIELD_NUMBER: _ClassVar[int]
    SSD_BLOCK_COUNT_FIELD_NUMBER: _ClassVar[int]
    SHARED_BLOCK_COUNT_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_BLOCK_COUNT_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    gpu_block_count: int
    host_block_count: int
    ssd_block_count: int
    shared_block_count: int
    computed_block_count: int
    digest: bytes
    def __init__(self, gpu_block_count: _Optional[int] = ..., host_block_count: _Optional[int] = ..., ssd_block_count: _Optional[int] = ..., shared_block_count: _Optional[int] = ..., computed_block_count: _Optional[int] = ..., digest: _Optional[bytes] = ...) -> None: ...

class LeaseIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, ids: _Optional[_Iterable[str]] = ...) -> None: ...

class StorageUsage(_message.Message):
    __slots__ = ("gpu_token_seconds", "host_token_seconds", "ssd_token_seconds", "shared_token_seconds")
    GPU_TOKEN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    HOST_TOKEN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SSD_TOKEN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SHARED_TOKEN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    gpu_token_seconds: int
    host_token_seconds: int
    ssd_token_seconds: int
    shared_token_seconds: int
    def __init__(self, gpu_token_seconds: _Optional[int] = ..., host_token_seconds: _Optional[int] = ..., ssd_token_seconds: _Optional[int] = ..., shared_token_seconds: _Optional[int] = ...) -> None: ...

class RecordUsageRequest(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[UsageEvent]
    def __init__(self, events: _Optional[_Iterable[_Union[UsageEvent, _Mapping]]] = ...) -> None: ...

class RecordUsageResponse(_message.Message):
    __slots__ = ("outcomes",)
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    outcomes: _containers.RepeatedCompositeFieldContainer[RecordOutcome]
    def __init__(self, outcomes: _Optional[_Iterable[_Union[RecordOutcome, _Mapping]]] = ...) -> None: ...

class RecordOutcome(_message.Message):
    __slots__ = ("request_id", "status", "reason", "ledger_position")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    LEDGER_POSITION_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    status: RecordStatus
    reason: str
    ledger_position: int
    def __init__(self, request_id: _Optional[str] = ..., status: _Optional[_Union[RecordStatus, str]] = ..., reason: _Optional[str] = ..., ledger_position: _Optional[int] = ...) -> None: ...

class RateUsageRequest(_message.Message):
    __slots__ = ("model", "tokens", "end_time", "service_class")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    SERVICE_CLASS_FIELD_NUMBER: _ClassVar[int]
    model: str
    tokens: TokenUsage
    end_time: _timestamp_pb2.Timestamp
    service_class: str
    def __init__(self, model: _Optional[str] = ..., tokens: _Optional[_Union[TokenUsage, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., service_class: _Optional[str] = ...) -> None: ...

class RateUsageResponse(_message.Message):
    __slots__ = ("amount", "currency_code", "saved_amount", "price_book_version", "lines", "notes")
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    CURRENCY_CODE_FIELD_NUMBER: _ClassVar[int]
    SAVED_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    PRICE_BOOK_VERSION_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    amount: str
    currency_code: str
    saved_amount: str
    price_book_version: str
    lines: _containers.RepeatedCompositeFieldContainer[RatedLine]
    notes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, amount: _Optional[str] = ..., currency_code: _Optional[str] = ..., saved_amount: _Optional[str] = ..., price_book_version: _Optional[str] = ..., lines: _Optional[_Iterable[_Union[RatedLine, _Mapping]]] = ..., notes: _Optional[_Iterable[str]] = ...) -> None: ...

class RatedLine(_message.Message):
    __slots__ = ("token_class", "cache_write_ttl_class", "quantity", "unit_price", "unit_tokens", "amount", "rule", "derivation")
    TOKEN_CLASS_FIELD_NUMBER: _ClassVar[int]
    CACHE_WRITE_TTL_CLASS_FIELD_NUMBER: _ClassVar[int]
    QUANTITY_FIELD_NUMBER: _ClassVar[int]
    UNIT_PRICE_FIELD_NUMBER: _ClassVar[int]
    UNIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    DERIVATION_FIELD_NUMBER: _ClassVar[int]
    token_class: str
    cache_write_ttl_class: str
    quantity: int
    unit_price: str
    unit_tokens: int
    amount: str
    rule: str
    derivation: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, token_class: _Optional[str] = ..., cache_write_ttl_class: _Optional[str] = ..., quantity: _Optional[int] = ..., unit_price: _Optional[str] = ..., unit_tokens: _Optional[int] = ..., amount: _Optional[str] = ..., rule: _Optional[str] = ..., derivation: _Optional[_Iterable[str]] = ...) -> None: ...

class GetUsageRequest(_message.Message):
    __slots__ = ("tenant_id", "start_time", "end_time", "group_by", "project_id")
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    GROUP_BY_FIELD_NUMBER: _ClassVar[int]
    PROJECT_ID_FIELD_NUMBER: _ClassVar[int]
    tenant_id: str
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    group_by: _containers.RepeatedScalarFieldContainer[str]
    project_id: str
    def __init__(self, tenant_id: _Optional[str] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., group_by: _Optional[_Iterable[str]] = ..., project_id: _Optional[str] = ...) -> None: ...

class GetUsageResponse(_message.Message):
    __slots__ = ("rows",)
    ROWS_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[UsageRow]
    def __init__(self, rows: _Optional[_Iterable[_Union[UsageRow, _Mapping]]] = ...) -> None: ...

class UsageRow(_message.Message):
    __slots__ = ("group", "request_count", "tokens", "amount", "currency_code", "saved_amount", "cache_writes", "corrected_amount", "net_saved_amount", "storage")
    class GroupEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    GROUP_FIELD_NUMBER: _ClassVar[int]
    REQUEST_COUNT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    CURRENCY_CODE_FIELD_NUMBER: _ClassVar[int]
    SAVED_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    CACHE_WRITES_FIELD_NUMBER: _ClassVar[int]
    CORRECTED_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    NET_SAVED_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    STORAGE_FIELD_NUMBER: _ClassVar[int]
    group: _containers.ScalarMap[str, str]
    request_count: int
    tokens: TokenUsage
    amount: str
    currency_code: str
    saved_amount: str
    cache_writes: _containers.RepeatedCompositeFieldContainer[CacheWrites]
    corrected_amount: str
    net_saved_amount: str
    storage: _containers.RepeatedCompositeFieldContainer[StorageKept]
    def __init__(self, group: _Optional[_Mapping[str, str]] = ..., request_count: _Optional[int] = ..., tokens: _Optional[_Union[TokenUsage, _Mapping]] = ..., amount: _Optional[str] = ..., currency_code: _Optional[str] = ..., saved_amount: _Optional[str] = ..., cache_writes: _Optional[_Iterable[_Union[CacheWrites, _Mapping]]] = ..., corrected_amount: _Optional[str] = ..., net_saved_amount: _Optional[str] = ..., storage: _Optional[_Iterable[_Union[StorageKept, _Mapping]]] = ...) -> None: ...

class StorageKept(_message.Message):
    __slots__ = ("tier", "token_milliseconds")
    TIER_FIELD_NUMBER: _ClassVar[int]
    TOKEN_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    tier: str
    token_milliseconds: int
    def __init__(self, tier: _Optional[str] = ..., token_milliseconds: _Optional[int] = ...) -> None: ...

class GetInvoiceRequest(_message.Message):
    __slots__ = ("tenant_id", "start_time", "end_time")
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    tenant_id: str
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    def __init__(self, tenant_id: _Optional[str] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class GetInvoiceResponse(_message.Message):
    __slots__ = ("invoice",)
    INVOICE_FIELD_NUMBER: _ClassVar[int]
    invoice: Invoice
    def __init__(self, invoice: _Optional[_Union[Invoice, _Mapping]] = ...) -> None: ...

class Invoice(_message.Message):
    __slots__ = ("tenant_id", "start_time", "end_time", "currency_code", "lines", "total_amount", "saved_amount", "request_count", "unrated_request_count", "cache_writes", "corrections", "adjustments", "terms", "terms_hash", "credits", "net_saved_amount")
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    CURRENCY_CODE_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    SAVED_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_COUNT_FIELD_NUMBER: _ClassVar[int]
    UNRATED_REQUEST_COUNT_FIELD_NUMBER: _ClassVar[int]
    CACHE_WRITES_FIELD_NUMBER: _ClassVar[int]
    CORRECTIONS_FIELD_NUMBER: _ClassVar[int]
    ADJUSTMENTS_FIELD_NUMBER: _ClassVar[int]
    TERMS_FIELD_NUMBER: _ClassVar[int]
    TERMS_HASH_FIELD_NUMBER: _ClassVar[int]
    CREDITS_FIELD_NUMBER: _ClassVar[int]
    NET_SAVED_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    tenant_id: str
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    currency_code: str
    lines: _containers.RepeatedCompositeFieldContainer[InvoiceLine]
    total_amount: str
    saved_amount: str
    request_count: int
    unrated_request_count: int
    cache_writes: _containers.RepeatedCompositeFieldContainer[CacheWrites]
    corrections: _containers.RepeatedCompositeFieldContainer[Correction]
    adjustments: _containers.RepeatedCompositeFieldContainer[InvoiceAdjustment]
    terms: str
    terms_hash: str
    credits: _containers.RepeatedCompositeFieldContainer[InvoiceCredit]
    net_saved_amount: str
    def __init__(self, tenant_id: _Optional[str] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., currency_code: _Optional[str] = ..., lines: _Optional[_Iterable[_Union[InvoiceLine, _Mapping]]] = ..., total_amount: _Optional[str] = ..., saved_amount: _Optional[str] = ..., request_count: _Optional[int] = ..., unrated_request_count: _Optional[int] = ..., cache_writes: _Optional[_Iterable[_Union[CacheWrites, _Mapping]]] = ..., corrections: _Optional[_Iterable[_Union[Correction, _Mapping]]] = ..., adjustments: _Optional[_Iterable[_Union[InvoiceAdjustment, _Mapping]]] = ..., terms: _Optional[str] = ..., terms_hash: _Optional[str] = ..., credits: _Optional[_Iterable[_Union[InvoiceCredit, _Mapping]]] = ..., net_saved_amount: _Optional[str] = ...) -> None: ...

class InvoiceAdjustment(_message.Message):
    __slots__ = ("kind", "name", "amount", "quantity")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    QUANTITY_FIELD_NUMBER: _ClassVar[int]
    kind: str
    name: str
    amount: str
    quantity: int
    def __init__(self, kind: _Optional[str] = ..., name: _Optional[str] = ..., amount: _Optional[str] = ..., quantity: _Optional[int] = ...) -> None: ...

class InvoiceCredit(_message.Message):
    __slots__ = ("name", "left_amount", "expire_time", "corrections")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LEFT_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    CORRECTIONS_FIELD_NUMBER: _ClassVar[int]
    name: str
    left_amount: str
    expire_time: _timestamp_pb2.Timestamp
    corrections: _containers.RepeatedCompositeFieldContainer[Correction]
    def __init__(self, name: _Optional[str] = ..., left_amount: _Optional[str] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., corrections: _Optional[_Iterable[_Union[Correction, _Mapping]]] = ...) -> None: ...

class InvoiceLine(_message.Message):
    __slots__ = ("model", "token_class", "quantity_tokens", "unit_price", "unit_tokens", "amount", "price_book_version", "cache_write_ttl_class", "rule")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TOKEN_CLASS_FIELD_NUMBER: _ClassVar[int]
    QUANTITY_TOKENS_FIELD_NUMBER: _ClassVar[int]
    UNIT_PRICE_FIELD_NUMBER: _ClassVar[int]
    UNIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    PRICE_BOOK_VERSION_FIELD_NUMBER: _ClassVar[int]
    CACHE_WRITE_TTL_CLASS_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    model: str
    token_class: str
    quantity_tokens: int
    unit_price: str
    unit_tokens: int
    amount: str
    price_book_version: str
    cache_write_ttl_class: str
    rule: str
    def __init__(self, model: _Optional[str] = ..., token_class: _Optional[str] = ..., quantity_tokens: _Optional[int] = ..., unit_price: _Optional[str] = ..., unit_tokens: _Optional[int] = ..., amount: _Optional[str] = ..., price_book_version: _Optional[str] = ..., cache_write_ttl_class: _Optional[str] = ..., rule: _Optional[str] = ...) -> None: ...

class ListChargesRequest(_message.Message):
    __slots__ = ("tenant_id", "start_time", "end_time", "project_id")
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    PROJECT_ID_FIELD_NUMBER: _ClassVar[int]
    tenant_id: str
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    project_id: str
    def __init__(self, tenant_id: _Optional[str] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., project_id: _Optional[str] = ...) -> None: ...

class ListChargesResponse(_message.Message):
    __slots__ = ("charges", "unrated_request_count")
    CHARGES_FIELD_NUMBER: _ClassVar[int]
    UNRATED_REQUEST_COUNT_FIELD_NUMBER: _ClassVar[int]
    charges: _containers.RepeatedCompositeFieldContainer[Charge]
    unrated_request_count: int
    def __init__(self, charges: _Optional[_Iterable[_Union[Charge, _Mapping]]] = ..., unrated_request_count: _Optional[int] = ...) -> None: ...

class Charge(_message.Message):
    __slots__ = ("day", "tenant_id", "project_id", "key_id", "model", "token_class", "cache_write_ttl_class", "quantity", "unit_price", "unit_tokens", "amount", "currency_code", "price_book_version", "rule")
    DAY_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    PROJECT_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TOKEN_CLASS_FIELD_NUMBER: _ClassVar[int]
    CACHE_WRITE_TTL_CLASS_FIELD_NUMBER: _ClassVar[int]
    QUANTITY_FIELD_NUMBER: _ClassVar[int]
    UNIT_PRICE_FIELD_NUMBER: _ClassVar[int]
    UNIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    CURRENCY_CODE_FIELD_NUMBER: _ClassVar[int]
    PRICE_BOOK_VERSION_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    day: str
    tenant_id: str
    project_id: str
    key_id: str
    model: str
    token_class: str
    cache_write_ttl_class: str
    quantity: int
    unit_price: str
    unit_tokens: int
    amount: str
    currency_code: str
    price_book_version: str
    rule: str
    def __init__(self, day: _Optional[str] = ..., tenant_id: _Optional[str] = ..., project_id: _Optional[str] = ..., key_id: _Optional[str] = ..., model: _Optional[str] = ..., token_class: _Optional[str] = ..., cache_write_ttl_class: _Optional[str] = ..., quantity: _Optional[int] = ..., unit_price: _Optional[str] = ..., unit_tokens: _Optional[int] = ..., amount: _Optional[str] = ..., currency_code: _Optional[str] = ..., price_book_version: _Optional[str] = ..., rule: _Optional[str] = ...) -> None: ...

class FindUsageEventsRequest(_message.Message):
    __slots__ = ("tenant_id", "project_id", "id")
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    PROJECT_ID_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    tenant_id: str
    project_id: str
    id: str
    def __init__(self, tenant_id: _Optional[str] = ..., project_id: _Optional[str] = ..., id: _Optional[str] = ...) -> None: ...

class FindUsageEventsResponse(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[LedgerEntry]
    def __init__(self, entries: _Optional[_Iterable[_Union[LedgerEntry, _Mapping]]] = ...) -> None: ...

class LedgerEntry(_message.Message):
    __slots__ = ("position", "event", "record_time", "amount", "currency_code", "price_book_version", "hash", "lines", "notes", "corrections")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    RECORD_TIME_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    CURRENCY_CODE_FIELD_NUMBER: _ClassVar[int]
    PRICE_BOOK_VERSION_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    CORRECTIONS_FIELD_NUMBER: _ClassVar[int]
    position: int
    event: UsageEvent
    record_time: _timestamp_pb2.Timestamp
    amount: str
    currency_code: str
    price_book_version: str
    hash: bytes
    lines: _containers.RepeatedCompositeFieldContainer[RatedLine]
    notes: _containers.RepeatedScalarFieldContainer[str]
    corrections: _containers.RepeatedCompositeFieldContainer[Correction]
    def __init__(self, position: _Optional[int] = ..., event: _Optional[_Union[UsageEvent, _Mapping]] = ..., record_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., amount: _Optional[str] = ..., currency_code: _Optional[str] = ..., price_book_version: _Optional[str] = ..., hash: _Optional[bytes] = ..., lines: _Optional[_Iterable[_Union[RatedLine, _Mapping]]] = ..., notes: _Optional[_Iterable[str]] = ..., corrections: _Optional[_Iterable[_Union[Correction, _Mapping]]] = ...) -> None: ...

class CorrectUsageRequest(_message.Message):
    __slots__ = ("correction_id", "request_id", "kind", "amount", "currency_code", "reason", "operator")
    CORRECTION_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    CURRENCY_CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    correction_id: str
    request_id: str
    kind: CorrectionKind
    amount: str
    currency_code: str
    reason: str
    operator: str
    def __init__(self, correction_id: _Optional[str] = ..., request_id: _Optional[str] = ..., kind: _Optional[_Union[CorrectionKind, str]] = ..., amount: _Optional[str] = ..., currency_code: _Optional[str] = ..., reason: _Optional[str] = ..., operator: _Optional[str] = ...) -> None: ...

class CorrectUsageResponse(_message.Message):
    __slots__ = ("correction", "already_there")
    CORRECTION_FIELD_NUMBER: _ClassVar[int]
    ALREADY_THERE_FIELD_NUMBER: _ClassVar[int]
    correction: Correction
    already_there: bool
    def __init__(self, correction: _Optional[_Union[Correction, _Mapping]] = ..., already_there: bool = ...) -> None: ...

class Correction(_message.Message):
    __slots__ = ("correction_id", "request_id", "kind", "reason", "operator", "amount", "currency_code", "ledger_position", "corrected_position", "create_time")
    CORRECTION_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    CURRENCY_CODE_FIELD_NUMBER: _ClassVar[int]
    LEDGER_POSITION_FIELD_NUMBER: _ClassVar[int]
    CORRECTED_POSITION_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    correction_id: str
    request_id: str
    kind: CorrectionKind
    reason: str
    operator: str
    amount: str
    currency_code: str
    ledger_position: int
    corrected_position: int
    create_time: _timestamp_pb2.Timestamp
    def __init__(self, correction_id: _Optional[str] = ..., request_id: _Optional[str] = ..., kind: _Optional[_Union[CorrectionKind, str]] = ..., reason: _Optional[str] = ..., operator: _Optional[str] = ..., amount: _Optional[str] = ..., currency_code: _Optional[str] = ..., ledger_position: _Optional[int] = ..., corrected_position: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class VerifyLedgerRequest(_message.Message):
    __slots__ = ("kept_checkpoints", "trusted_public_key", "kept_entries")
    KEPT_CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    TRUSTED_PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    KEPT_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    kept_checkpoints: _containers.RepeatedCompositeFieldContainer[Checkpoint]
    trusted_public_key: bytes
    kept_entries: _containers.RepeatedCompositeFieldContainer[KeptEntry]
    def __init__(self, kept_checkpoints: _Optional[_Iterable[_Union[Checkpoint, _Mapping]]] = ..., trusted_public_key: _Optional[bytes] = ..., kept_entries: _Optional[_Iterable[_Union[KeptEntry, _Mapping]]] = ...) -> None: ...

class KeptEntry(_message.Message):
    __slots__ = ("ledger_id", "position", "entry_hash", "request_id", "public_key")
    LEDGER_ID_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    ENTRY_HASH_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    ledger_id: str
    position: int
    entry_hash: bytes
    request_id: str
    public_key: bytes
    def __init__(self, ledger_id: _Optional[str] = ..., position: _Optional[int] = ..., entry_hash: _Optional[bytes] = ..., request_id: _Optional[str] = ..., public_key: _Optional[bytes] = ...) -> None: ...

class Checkpoint(_message.Message):
    __slots__ = ("ledger_id", "number", "position", "entry_hash", "refused_count", "refused_hash", "create_time", "key_id", "signature", "public_key")
    LEDGER_ID_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    ENTRY_HASH_FIELD_NUMBER: _ClassVar[int]
    REFUSED_COUNT_FIELD_NUMBER: _ClassVar[int]
    REFUSED_HASH_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    ledger_id: str
    number: int
    position: int
    entry_hash: bytes
    refused_count: int
    refused_hash: bytes
    create_time: _timestamp_pb2.Timestamp
    key_id: str
    signature: bytes
    public_key: bytes
    def __init__(self, ledger_id: _Optional[str] = ..., number: _Optional[int] = ..., position: _Optional[int] = ..., entry_hash: _Optional[bytes] = ..., refused_count: _Optional[int] = ..., refused_hash: _Optional[bytes] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., key_id: _Optional[str] = ..., signature: _Optional[bytes] = ..., public_key: _Optional[bytes] = ...) -> None: ...

class GetCheckpointRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetCheckpointResponse(_message.Message):
    __slots__ = ("checkpoint",)
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    checkpoint: Checkpoint
    def __init__(self, checkpoint: _Optional[_Union[Checkpoint, _Mapping]] = ...) -> None: ...

class LedgerKey(_message.Message):
    __slots__ = ("number", "key_id", "public_key", "create_time")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    number: int
    key_id: str
    public_key: bytes
    create_time: _timestamp_pb2.Timestamp
    def __init__(self, number: _Optional[int] = ..., key_id: _Optional[str] = ..., public_key: _Optional[bytes] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class GetLedgerKeysRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetLedgerKeysResponse(_message.Message):
    __slots__ = ("keys",)
    KEYS_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedCompositeFieldContainer[LedgerKey]
    def __init__(self, keys: _Optional[_Iterable[_Union[LedgerKey, _Mapping]]] = ...) -> None: ...

class RotateLedgerKeyRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RotateLedgerKeyResponse(_message.Message):
    __slots__ = ("key",)
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: LedgerKey
    def __init__(self, key: _Optional[_Union[LedgerKey, _Mapping]] = ...) -> None: ...

class RerateUsageRequest(_message.Message):
    __slots__ = ("tenant_id", "start_time", "end_time", "group_by", "price_book", "price_book_name")
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    GROUP_BY_FIELD_NUMBER: _ClassVar[int]
    PRICE_BOOK_FIELD_NUMBER: _ClassVar[int]
    PRICE_BOOK_NAME_FIELD_NUMBER: _ClassVar[int]
    tenant_id: str
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    group_by: _containers.RepeatedScalarFieldContainer[str]
    price_book: str
    price_book_name: str
    def __init__(self, tenant_id: _Optional[str] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., group_by: _Optional[_Iterable[str]] = ..., price_book: _Optional[str] = ..., price_book_name: _Optional[str] = ...) -> None: ...

class RerateUsageResponse(_message.Message):
    __slots__ = ("rows",)
    ROWS_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[RerateRow]
    def __init__(self, rows: _Optional[_Iterable[_Union[RerateRow, _Mapping]]] = ...) -> None: ...

class RerateRow(_message.Message):
    __slots__ = ("group", "charged", "rerated")
    class GroupEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    GROUP_FIELD_NUMBER: _ClassVar[int]
    CHARGED_FIELD_NUMBER: _ClassVar[int]
    RERATED_FIELD_NUMBER: _ClassVar[int]
    group: _containers.ScalarMap[str, str]
    charged: _containers.RepeatedCompositeFieldContainer[RateSum]
    rerated: _containers.RepeatedCompositeFieldContainer[RateSum]
    def __init__(self, group: _Optional[_Mapping[str, str]] = ..., charged: _Optional[_Iterable[_Union[RateSum, _Mapping]]] = ..., rerated: _Optional[_Iterable[_Union[RateSum, _Mapping]]] = ...) -> None: ...

class RateSum(_message.Message):
    __slots__ = ("currency_code", "amount", "saved_amount", "request_count")
    CURRENCY_CODE_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    SAVED_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_COUNT_FIELD_NUMBER: _ClassVar[int]
    currency_code: str
    amount: str
    saved_amount: str
    request_count: int
    def __init__(self, currency_code: _Optional[str] = ..., amount: _Optional[str] = ..., saved_amount: _Optional[str] = ..., request_count: _Optional[int] = ...) -> None: ...

class VerifyLedgerResponse(_message.Message):
    __slots__ = ("entry_count", "posting_count", "verified", "first_broken_position", "problem", "unrated_count", "refused_count", "head_hash", "checkpoint_count")
    ENTRY_COUNT_FIELD_NUMBER: _ClassVar[int]
    POSTING_COUNT_FIELD_NUMBER: _ClassVar[int]
    VERIFIED_FIELD_NUMBER: _ClassVar[int]
    FIRST_BROKEN_POSITION_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    UNRATED_COUNT_FIELD_NUMBER: _ClassVar[int]
    REFUSED_COUNT_FIELD_NUMBER: _ClassVar[int]
    HEAD_HASH_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_COUNT_FIELD_NUMBER: _ClassVar[int]
    entry_count: int
    posting_count: int
    verified: bool
    first_broken_position: int
    problem: str
    unrated_count: int
    refused_count: int
    head_hash: str
    checkpoint_count: int
    def __init__(self, entry_count: _Optional[int] = ..., posting_count: _Optional[int] = ..., verified: bool = ..., first_broken_position: _Optional[int] = ..., problem: _Optional[str] = ..., unrated_count: _Optional[int] = ..., refused_count: _Optional[int] = ..., head_hash: _Optional[str] = ..., checkpoint_count: _Optional[int] = ...) -> None: ...

class GetPriceBookRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetPriceBookResponse(_message.Message):
    __slots__ = ("versions",)
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    versions: _containers.RepeatedCompositeFieldContainer[PriceBookVersion]
    def __init__(self, versions: _Optional[_Iterable[_Union[PriceBookVersion, _Mapping]]] = ...) -> None: ...

class PriceBookVersion(_message.Message):
    __slots__ = ("version", "effective_time", "currency_code", "source", "invoice_decimals", "prices", "content_hash")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EFFECTIVE_TIME_FIELD_NUMBER: _ClassVar[int]
    CURRENCY_CODE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    INVOICE_DECIMALS_FIELD_NUMBER: _ClassVar[int]
    PRICES_FIELD_NUMBER: _ClassVar[int]
    CONTENT_HASH_FIELD_NUMBER: _ClassVar[int]
    version: str
    effective_time: _timestamp_pb2.Timestamp
    currency_code: str
    source: str
    invoice_decimals: int
    prices: _containers.RepeatedCompositeFieldContainer[ModelPrice]
    content_hash: str
    def __init__(self, version: _Optional[str] = ..., effective_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., currency_code: _Optional[str] = ..., source: _Optional[str] = ..., invoice_decimals: _Optional[int] = ..., prices: _Optional[_Iterable[_Union[ModelPrice, _Mapping]]] = ..., content_hash: _Optional[str] = ...) -> None: ...

class ModelPrice(_message.Message):
    __slots__ = ("model_pattern", "hit_price", "miss_price", "output_price", "unit_tokens", "cache_write_prices", "rules")
    class CacheWritePricesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MODEL_PATTERN_FIELD_NUMBER: _ClassVar[int]
    HIT_PRICE_FIELD_NUMBER: _ClassVar[int]
    MISS_PRICE_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_PRICE_FIELD_NUMBER: _ClassVar[int]
    UNIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHE_WRITE_PRICES_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    model_pattern: str
    hit_price: str
    miss_price: str
    output_price: str
    unit_tokens: int
    cache_write_prices: _containers.ScalarMap[str, str]
    rules: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, model_pattern: _Optional[str] = ..., hit_price: _Optional[str] = ..., miss_price: _Optional[str] = ..., output_price: _Optional[str] = ..., unit_tokens: _Optional[int] = ..., cache_write_prices: _Optional[_Mapping[str, str]] = ..., rules: _Optional[_Iterable[str]] = ...) -> None: ...
