import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from kvtier.v1 import block_pb2 as _block_pb2
from kvtier.v1 import usage_pb2 as _usage_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LeaseEnd(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LEASE_END_UNSPECIFIED: _ClassVar[LeaseEnd]
    LEASE_END_RELEASED: _ClassVar[LeaseEnd]
    LEASE_END_NOTHING_READY: _ClassVar[LeaseEnd]
    LEASE_END_ABANDONED: _ClassVar[LeaseEnd]
    LEASE_END_EXPIRED: _ClassVar[LeaseEnd]
    LEASE_END_SESSION_CLOSED: _ClassVar[LeaseEnd]
    LEASE_END_SESSION_EXPIRED: _ClassVar[LeaseEnd]
    LEASE_END_STOPPED: _ClassVar[LeaseEnd]
    LEASE_END_LOST: _ClassVar[LeaseEnd]

class GapReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GAP_REASON_UNSPECIFIED: _ClassVar[GapReason]
    GAP_REASON_KILLED: _ClassVar[GapReason]
    GAP_REASON_UNWRITTEN: _ClassVar[GapReason]
LEASE_END_UNSPECIFIED: LeaseEnd
LEASE_END_RELEASED: LeaseEnd
LEASE_END_NOTHING_READY: LeaseEnd
LEASE_END_ABANDONED: LeaseEnd
LEASE_END_EXPIRED: LeaseEnd
LEASE_END_SESSION_CLOSED: LeaseEnd
LEASE_END_SESSION_EXPIRED: LeaseEnd
LEASE_END_STOPPED: LeaseEnd
LEASE_END_LOST: LeaseEnd
GAP_REASON_UNSPECIFIED: GapReason
GAP_REASON_KILLED: GapReason
GAP_REASON_UNWRITTEN: GapReason

class Attestation(_message.Message):
    __slots__ = ("attestation_id", "schema_version", "node", "instance_id", "lease", "gap", "storage")
    ATTESTATION_ID_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    GAP_FIELD_NUMBER: _ClassVar[int]
    STORAGE_FIELD_NUMBER: _ClassVar[int]
    attestation_id: str
    schema_version: int
    node: str
    instance_id: str
    lease: LeaseAttestation
    gap: AttestationGap
    storage: StorageAttestation
    def __init__(self, attestation_id: _Optional[str] = ..., schema_version: _Optional[int] = ..., node: _Optional[str] = ..., instance_id: _Optional[str] = ..., lease: _Optional[_Union[LeaseAttestation, _Mapping]] = ..., gap: _Optional[_Union[AttestationGap, _Mapping]] = ..., storage: _Optional[_Union[StorageAttestation, _Mapping]] = ...) -> None: ...

class StorageAttestation(_message.Message):
    __slots__ = ("tenant_id", "model", "tier", "start_time", "end_time", "token_milliseconds", "maximum_tokens", "started_tokens")
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    TOKEN_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    MAXIMUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STARTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    tenant_id: str
    model: str
    tier: _block_pb2.Tier
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    token_milliseconds: int
    maximum_tokens: int
    started_tokens: int
    def __init__(self, tenant_id: _Optional[str] = ..., model: _Optional[str] = ..., tier: _Optional[_Union[_block_pb2.Tier, str]] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., token_milliseconds: _Optional[int] = ..., maximum_tokens: _Optional[int] = ..., started_tokens: _Optional[int] = ...) -> None: ...

class LeaseAttestation(_message.Message):
    __slots__ = ("request_id", "client_name", "session_id", "owner", "namespace_id", "block_tokens", "start_time", "end_time", "end", "granted", "served", "corrupt_blocks")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_NAME_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_ID_FIELD_NUMBER: _ClassVar[int]
    BLOCK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    CORRUPT_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    client_name: str
    session_id: str
    owner: str
    namespace_id: bytes
    block_tokens: int
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    end: LeaseEnd
    granted: TierBlocks
    served: TierBlocks
    corrupt_blocks: int
    def __init__(self, request_id: _Optional[str] = ..., client_name: _Optional[str] = ..., session_id: _Optional[str] = ..., owner: _Optional[str] = ..., namespace_id: _Optional[bytes] = ..., block_tokens: _Optional[int] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end: _Optional[_Union[LeaseEnd, str]] = ..., granted: _Optional[_Union[TierBlocks, _Mapping]] = ..., served: _Optional[_Union[TierBlocks, _Mapping]] = ..., corrupt_blocks: _Optional[int] = ...) -> None: ...

class TierBlocks(_message.Message):
    __slots__ = ("host", "ssd", "shared")
    HOST_FIELD_NUMBER: _ClassVar[int]
    SSD_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    host: int
    ssd: int
    shared: int
    def __init__(self, host: _Optional[int] = ..., ssd: _Optional[int] = ..., shared: _Optional[int] = ...) -> None: ...

class AttestationGap(_message.Message):
    __slots__ = ("start_time", "end_time", "reason", "lease_count")
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    LEASE_COUNT_FIELD_NUMBER: _ClassVar[int]
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    reason: GapReason
    lease_count: int
    def __init__(self, start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., reason: _Optional[_Union[GapReason, str]] = ..., lease_count: _Optional[int] = ...) -> None: ...

class RecordAttestationsRequest(_message.Message):
    __slots__ = ("attestations",)
    ATTESTATIONS_FIELD_NUMBER: _ClassVar[int]
    attestations: _containers.RepeatedCompositeFieldContainer[Attestation]
    def __init__(self, attestations: _Optional[_Iterable[_Union[Attestation, _Mapping]]] = ...) -> None: ...

class RecordAttestationsResponse(_message.Message):
    __slots__ = ("outcomes",)
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    outcomes: _containers.RepeatedCompositeFieldContainer[AttestationOutcome]
    def __init__(self, outcomes: _Optional[_Iterable[_Union[AttestationOutcome, _Mapping]]] = ...) -> None: ...

class AttestationOutcome(_message.Message):
    __slots__ = ("attestation_id", "status", "reason")
    ATTESTATION_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    attestation_id: str
    status: _usage_pb2.RecordStatus
    reason: str
    def __init__(self, attestation_id: _Optional[str] = ..., status: _Optional[_Union[_usage_pb2.RecordStatus, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class ReconcileUsageRequest(_message.Message):
    __slots__ = ("start_time", "end_time", "tenant_id")
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    tenant_id: str
    def __init__(self, start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., tenant_id: _Optional[str] = ...) -> None: ...

class ReconcileUsageResponse(_message.Message):
    __slots__ = ("differences", "summary")
    DIFFERENCES_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    differences: _containers.RepeatedCompositeFieldContainer[UsageDifference]
    summary: ReconcileSummary
    def __init__(self, differences: _Optional[_Iterable[_Union[UsageDifference, _Mapping]]] = ..., summary: _Optional[_Union[ReconcileSummary, _Mapping]] = ...) -> None: ...

class UsageDifference(_message.Message):
    __slots__ = ("kind", "explained", "tenant_id", "request_id", "lease_id", "subject", "expected", "found", "explanation")
    KIND_FIELD_NUMBER: _ClassVar[int]
    EXPLAINED_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    FOUND_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    kind: str
    explained: bool
    tenant_id: str
    request_id: str
    lease_id: str
    subject: str
    expected: int
    found: int
    explanation: str
    def __init__(self, kind: _Optional[str] = ..., explained: bool = ..., tenant_id: _Optional[str] = ..., request_id: _Optional[str] = ..., lease_id: _Optional[str] = ..., subject: _Optional[str] = ..., expected: _Optional[int] = ..., found: _Optional[int] = ..., explanation: _Optional[str] = ...) -> None: ...

class ReconcileSummary(_message.Message):
    __slots__ = ("request_count", "lease_count", "difference_count", "unexplained_count", "tokens")
    REQUEST_COUNT_FIELD_NUMBER: _ClassVar[int]
    LEASE_COUNT_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCE_COUNT_FIELD_NUMBER: _ClassVar[int]
    UNEXPLAINED_COUNT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    request_count: int
    lease_count: int
    difference_count: int
    unexplained_count: int
    tokens: _usage_pb2.TokenUsage
    def __init__(self, request_count: _Optional[int] = ..., lease_count: _Optional[int] = ..., difference_count: _Optional[int] = ..., unexplained_count: _Optional[int] = ..., tokens: _Optional[_Union[_usage_pb2.TokenUsage, _Mapping]] = ...) -> None: ...
