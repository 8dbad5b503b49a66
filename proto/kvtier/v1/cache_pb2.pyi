import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from kvtier.v1 import block_pb2 as _block_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Transport(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRANSPORT_UNSPECIFIED: _ClassVar[Transport]
    TRANSPORT_SHARED_MEMORY: _ClassVar[Transport]
    TRANSPORT_STREAM: _ClassVar[Transport]
    TRANSPORT_BULK: _ClassVar[Transport]
TRANSPORT_UNSPECIFIED: Transport
TRANSPORT_SHARED_MEMORY: Transport
TRANSPORT_STREAM: Transport
TRANSPORT_BULK: Transport

class ArenaHandover(_message.Message):
    __slots__ = ("socket_path", "ticket", "arena_bytes", "takes_calls")
    SOCKET_PATH_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    ARENA_BYTES_FIELD_NUMBER: _ClassVar[int]
    TAKES_CALLS_FIELD_NUMBER: _ClassVar[int]
    socket_path: str
    ticket: bytes
    arena_bytes: int
    takes_calls: bool
    def __init__(self, socket_path: _Optional[str] = ..., ticket: _Optional[bytes] = ..., arena_bytes: _Optional[int] = ..., takes_calls: bool = ...) -> None: ...

class OpenSessionRequest(_message.Message):
    __slots__ = ("key_scheme_version", "client_name", "namespace_id", "block_tokens", "block_bytes", "transport", "model")
    KEY_SCHEME_VERSION_FIELD_NUMBER: _ClassVar[int]
    CLIENT_NAME_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_ID_FIELD_NUMBER: _ClassVar[int]
    BLOCK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    key_scheme_version: int
    client_name: str
    namespace_id: bytes
    block_tokens: int
    block_bytes: int
    transport: Transport
    model: str
    def __init__(self, key_scheme_version: _Optional[int] = ..., client_name: _Optional[str] = ..., namespace_id: _Optional[bytes] = ..., block_tokens: _Optional[int] = ..., block_bytes: _Optional[int] = ..., transport: _Optional[_Union[Transport, str]] = ..., model: _Optional[str] = ...) -> None: ...

class OpenSessionResponse(_message.Message):
    __slots__ = ("session_id", "service_instance_id", "arena", "session_ttl", "lease_ttl", "reservation_ttl", "max_blocks_per_call")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    SERVICE_INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    ARENA_FIELD_NUMBER: _ClassVar[int]
    SESSION_TTL_FIELD_NUMBER: _ClassVar[int]
    LEASE_TTL_FIELD_NUMBER: _ClassVar[int]
    RESERVATION_TTL_FIELD_NUMBER: _ClassVar[int]
    MAX_BLOCKS_PER_CALL_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    service_instance_id: str
    arena: ArenaHandover
    session_ttl: _duration_pb2.Duration
    lease_ttl: _duration_pb2.Duration
    reservation_ttl: _duration_pb2.Duration
    max_blocks_per_call: int
    def __init__(self, session_id: _Optional[str] = ..., service_instance_id: _Optional[str] = ..., arena: _Optional[_Union[ArenaHandover, _Mapping]] = ..., session_ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., lease_ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., reservation_ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., max_blocks_per_call: _Optional[int] = ...) -> None: ...

class CloseSessionRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class CloseSessionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LookupPrefixRequest(_message.Message):
    __slots__ = ("session_id", "block_hashes")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    BLOCK_HASHES_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    block_hashes: bytes
    def __init__(self, session_id: _Optional[str] = ..., block_hashes: _Optional[bytes] = ...) -> None: ...

class LookupPrefixResponse(_message.Message):
    __slots__ = ("present_count", "tiers", "miss_reason")
    PRESENT_COUNT_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    MISS_REASON_FIELD_NUMBER: _ClassVar[int]
    present_count: int
    tiers: bytes
    miss_reason: _block_pb2.MissReason
    def __init__(self, present_count: _Optional[int] = ..., tiers: _Optional[bytes] = ..., miss_reason: _Optional[_Union[_block_pb2.MissReason, str]] = ...) -> None: ...

class AcquirePrefixRequest(_message.Message):
    __slots__ = ("session_id", "request_id", "block_hashes", "load_timeout", "returned_lease_ids", "recompute_time_per_block", "one_off", "ttl", "whole_units", "place")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    BLOCK_HASHES_FIELD_NUMBER: _ClassVar[int]
    LOAD_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    RETURNED_LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    RECOMPUTE_TIME_PER_BLOCK_FIELD_NUMBER: _ClassVar[int]
    ONE_OFF_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    WHOLE_UNITS_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    request_id: str
    block_hashes: bytes
    load_timeout: _duration_pb2.Duration
    returned_lease_ids: _containers.RepeatedScalarFieldContainer[str]
    recompute_time_per_block: _duration_pb2.Duration
    one_off: bool
    ttl: _duration_pb2.Duration
    whole_units: bool
    place: ChainPlace
    def __init__(self, session_id: _Optional[str] = ..., request_id: _Optional[str] = ..., block_hashes: _Optional[bytes] = ..., load_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., returned_lease_ids: _Optional[_Iterable[str]] = ..., recompute_time_per_block: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., one_off: bool = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., whole_units: bool = ..., place: _Optional[_Union[ChainPlace, _Mapping]] = ...) -> None: ...

class ChainPlace(_message.Message):
    __slots__ = ("first_index", "parent_hash")
    FIRST_INDEX_FIELD_NUMBER: _ClassVar[int]
    PARENT_HASH_FIELD_NUMBER: _ClassVar[int]
    first_index: int
    parent_hash: bytes
    def __init__(self, first_index: _Optional[int] = ..., parent_hash: _Optional[bytes] = ...) -> None: ...

class AcquirePrefixResponse(_message.Message):
    __slots__ = ("match", "ready", "end")
    MATCH_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    match: PrefixMatch
    ready: ReadyRange
    end: AcquireEnd
    def __init__(self, match: _Optional[_Union[PrefixMatch, _Mapping]] = ..., ready: _Optional[_Union[ReadyRange, _Mapping]] = ..., end: _Optional[_Union[AcquireEnd, _Mapping]] = ...) -> None: ...

class AcquireResidentRequest(_message.Message):
    __slots__ = ("session_id", "request_id", "block_hashes", "returned_lease_ids", "one_off", "ttl", "whole_units", "place")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    BLOCK_HASHES_FIELD_NUMBER: _ClassVar[int]
    RETURNED_LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    ONE_OFF_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    WHOLE_UNITS_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    request_id: str
    block_hashes: bytes
    returned_lease_ids: _containers.RepeatedScalarFieldContainer[str]
    one_off: bool
    ttl: _duration_pb2.Duration
    whole_units: bool
    place: ChainPlace
    def __init__(self, session_id: _Optional[str] = ..., request_id: _Optional[str] = ..., block_hashes: _Optional[bytes] = ..., returned_lease_ids: _Optional[_Iterable[str]] = ..., one_off: bool = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., whole_units: bool = ..., place: _Optional[_Union[ChainPlace, _Mapping]] = ...) -> None: ...

class AcquireResidentResponse(_message.Message):
    __slots__ = ("match", "ready", "end")
    MATCH_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    match: PrefixMatch
    ready: ReadyRange
    end: AcquireEnd
    def __init__(self, match: _Optional[_Union[PrefixMatch, _Mapping]] = ..., ready: _Optional[_Union[ReadyRange, _Mapping]] = ..., end: _Optional[_Union[AcquireEnd, _Mapping]] = ...) -> None: ...

class PrefixMatch(_message.Message):
    __slots__ = ("lease_id", "expire_time", "matched_count", "tiers", "miss_reason")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    MATCHED_COUNT_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    MISS_REASON_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    expire_time: _timestamp_pb2.Timestamp
    matched_count: int
    tiers: bytes
    miss_reason: _block_pb2.MissReason
    def __init__(self, lease_id: _Optional[str] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., matched_count: _Optional[int] = ..., tiers: _Optional[bytes] = ..., miss_reason: _Optional[_Union[_block_pb2.MissReason, str]] = ...) -> None: ...

class ReadyRange(_message.Message):
    __slots__ = ("first_index", "slab_offsets", "checksums")
    FIRST_INDEX_FIELD_NUMBER: _ClassVar[int]
    SLAB_OFFSETS_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    first_index: int
    slab_offsets: _containers.RepeatedScalarFieldContainer[int]
    checksums: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, first_index: _Optional[int] = ..., slab_offsets: _Optional[_Iterable[int]] = ..., checksums: _Optional[_Iterable[int]] = ...) -> None: ...

class AcquireEnd(_message.Message):
    __slots__ = ("ready_count", "miss_reason")
    READY_COUNT_FIELD_NUMBER: _ClassVar[int]
    MISS_REASON_FIELD_NUMBER: _ClassVar[int]
    ready_count: int
    miss_reason: _block_pb2.MissReason
    def __init__(self, ready_count: _Optional[int] = ..., miss_reason: _Optional[_Union[_block_pb2.MissReason, str]] = ...) -> None: ...

class RenewLeasesRequest(_message.Message):
    __slots__ = ("session_id", "lease_ids", "reservation_ids")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    RESERVATION_IDS_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    lease_ids: _containers.RepeatedScalarFieldContainer[str]
    reservation_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, session_id: _Optional[str] = ..., lease_ids: _Optional[_Iterable[str]] = ..., reservation_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class RenewLeasesResponse(_message.Message):
    __slots__ = ("renewals",)
    RENEWALS_FIELD_NUMBER: _ClassVar[int]
    renewals: _containers.RepeatedCompositeFieldContainer[Renewal]
    def __init__(self, renewals: _Optional[_Iterable[_Union[Renewal, _Mapping]]] = ...) -> None: ...

class Renewal(_message.Message):
    __slots__ = ("id", "expire_time")
    ID_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    id: str
    expire_time: _timestamp_pb2.Timestamp
    def __init__(self, id: _Optional[str] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ReleaseLeaseRequest(_message.Message):
    __slots__ = ("session_id", "lease_id", "corrupt_block_hashes", "returned_lease_ids")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    CORRUPT_BLOCK_HASHES_FIELD_NUMBER: _ClassVar[int]
    RETURNED_LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    lease_id: str
    corrupt_block_hashes: bytes
    returned_lease_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, session_id: _Optional[str] = ..., lease_id: _Optional[str] = ..., corrupt_block_hashes: _Optional[bytes] = ..., returned_lease_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class ReleaseLeaseResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReserveBlocksRequest(_message.Message):
    __slots__ = ("session_id", "request_id", "block_hashes", "returned_lease_ids", "one_off", "ttl", "unit_end_indexes", "common_prefix_ends_unit", "owner_runs")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    BLOCK_HASHES_FIELD_NUMBER: _ClassVar[int]
    RETURNED_LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    ONE_OFF_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    UNIT_END_INDEXES_FIELD_NUMBER: _ClassVar[int]
    COMMON_PREFIX_ENDS_UNIT_FIELD_NUMBER: _ClassVar[int]
    OWNER_RUNS_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    request_id: str
    block_hashes: bytes
    returned_lease_ids: _containers.RepeatedScalarFieldContainer[str]
    one_off: bool
    ttl: _duration_pb2.Duration
    unit_end_indexes: _containers.RepeatedScalarFieldContainer[int]
    common_prefix_ends_unit: bool
    owner_runs: _containers.RepeatedCompositeFieldContainer[OwnerRun]
    def __init__(self, session_id: _Optional[str] = ..., request_id: _Optional[str] = ..., block_hashes: _Optional[bytes] = ..., returned_lease_ids: _Optional[_Iterable[str]] = ..., one_off: bool = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., unit_end_indexes: _Optional[_Iterable[int]] = ..., common_prefix_ends_unit: bool = ..., owner_runs: _Optional[_Iterable[_Union[OwnerRun, _Mapping]]] = ...) -> None: ...

class OwnerRun(_message.Message):
    __slots__ = ("owner", "block_count")
    OWNER_FIELD_NUMBER: _ClassVar[int]
    BLOCK_COUNT_FIELD_NUMBER: _ClassVar[int]
    owner: str
    block_count: int
    def __init__(self, owner: _Optional[str] = ..., block_count: _Optional[int] = ...) -> None: ...

class ReserveBlocksResponse(_message.Message):
    __slots__ = ("reservation_id", "expire_time", "missing_indexes", "slab_offsets", "refused_count", "refused_reason")
    RESERVATION_ID_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    MISSING_INDEXES_FIELD_NUMBER: _ClassVar[int]
    SLAB_OFFSETS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_COUNT_FIELD_NUMBER: _ClassVar[int]
    REFUSED_REASON_FIELD_NUMBER: _ClassVar[int]
    reservation_id: str
    expire_time: _timestamp_pb2.Timestamp
    missing_indexes: _containers.RepeatedScalarFieldContainer[int]
    slab_offsets: _containers.RepeatedScalarFieldContainer[int]
    refused_count: int
    refused_reason: _block_pb2.MissReason
    def __init__(self, reservation_id: _Optional[str] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., missing_indexes: _Optional[_Iterable[int]] = ..., slab_offsets: _Optional[_Iterable[int]] = ..., refused_count: _Optional[int] = ..., refused_reason: _Optional[_Union[_block_pb2.MissReason, str]] = ...) -> None: ...

class CommitBlocksRequest(_message.Message):
    __slots__ = ("session_id", "reservation_id", "checksums")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    RESERVATION_ID_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    reservation_id: str
    checksums: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, session_id: _Optional[str] = ..., reservation_id: _Optional[str] = ..., checksums: _Optional[_Iterable[int]] = ...) -> None: ...

class CommitBlocksResponse(_message.Message):
    __slots__ = ("committed_count",)
    COMMITTED_COUNT_FIELD_NUMBER: _ClassVar[int]
    committed_count: int
    def __init__(self, committed_count: _Optional[int] = ...) -> None: ...

class AbortReservationRequest(_message.Message):
    __slots__ = ("session_id", "reservation_id")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    RESERVATION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    reservation_id: str
    def __init__(self, session_id: _Optional[str] = ..., reservation_id: _Optional[str] = ...) -> None: ...

class AbortReservationResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LoadBlocksRequest(_message.Message):
    __slots__ = ("session_id", "lease_id", "first_index", "block_count")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_INDEX_FIELD_NUMBER: _ClassVar[int]
    BLOCK_COUNT_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    lease_id: str
    first_index: int
    block_count: int
    def __init__(self, session_id: _Optional[str] = ..., lease_id: _Optional[str] = ..., first_index: _Optional[int] = ..., block_count: _Optional[int] = ...) -> None: ...

class LoadBlocksResponse(_message.Message):
    __slots__ = ("index", "offset", "data")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    index: int
    offset: int
    data: bytes
    def __init__(self, index: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class StoreBlocksRequest(_message.Message):
    __slots__ = ("session_id", "reservation_id", "index", "offset", "data")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    RESERVATION_ID_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    reservation_id: str
    index: int
    offset: int
    data: bytes
    def __init__(self, session_id: _Optional[str] = ..., reservation_id: _Optional[str] = ..., index: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class StoreBlocksResponse(_message.Message):
    __slots__ = ("stored_count",)
    STORED_COUNT_FIELD_NUMBER: _ClassVar[int]
    stored_count: int
    def __init__(self, stored_count: _Optional[int] = ...) -> None: ...

class GetStatsRequest(_message.Message):
    __slots__ = ("owners_max",)
    OWNERS_MAX_FIELD_NUMBER: _ClassVar[int]
    owners_max: int
    def __init__(self, owners_max: _Optional[int] = ...) -> None: ...

class GetStatsResponse(_message.Message):
    __slots__ = ("service_instance_id", "start_time", "tiers", "session_count", "lease_count", "reservation_count", "pending_write_count", "recovery", "counters", "scrub", "ssd_codec", "admission", "host_memory", "index_bytes", "host_only_count", "ssd_files", "owners", "ssd_encryption")
    class CountersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    SERVICE_INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    SESSION_COUNT_FIELD_NUMBER: _ClassVar[int]
    LEASE_COUNT_FIELD_NUMBER: _ClassVar[int]
    RESERVATION_COUNT_FIELD_NUMBER: _ClassVar[int]
    PENDING_WRITE_COUNT_FIELD_NUMBER: _ClassVar[int]
    RECOVERY_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    SCRUB_FIELD_NUMBER: _ClassVar[int]
    SSD_CODEC_FIELD_NUMBER: _ClassVar[int]
    ADMISSION_FIELD_NUMBER: _ClassVar[int]
    HOST_MEMORY_FIELD_NUMBER: _ClassVar[int]
    INDEX_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOST_ONLY_COUNT_FIELD_NUMBER: _ClassVar[int]
    SSD_FILES_FIELD_NUMBER: _ClassVar[int]
    OWNERS_FIELD_NUMBER: _ClassVar[int]
    SSD_ENCRYPTION_FIELD_NUMBER: _ClassVar[int]
    service_instance_id: str
    start_time: _timestamp_pb2.Timestamp
    tiers: _containers.RepeatedCompositeFieldContainer[TierStats]
    session_count: int
    lease_count: int
    reservation_count: int
    pending_write_count: int
    recovery: RecoveryStats
    counters: _containers.ScalarMap[str, int]
    scrub: ScrubStats
    ssd_codec: SsdCodec
    admission: AdmissionStats
    host_memory: HostMemoryStats
    index_bytes: int
    host_only_count: int
    ssd_files: SsdFiles
    owners: OwnersStats
    ssd_encryption: SsdEncryption
    def __init__(self, service_instance_id: _Optional[str] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., tiers: _Optional[_Iterable[_Union[TierStats, _Mapping]]] = ..., session_count: _Optional[int] = ..., lease_count: _Optional[int] = ..., reservation_count: _Optional[int] = ..., pending_write_count: _Optional[int] = ..., recovery: _Optional[_Union[RecoveryStats, _Mapping]] = ..., counters: _Optional[_Mapping[str, int]] = ..., scrub: _Optional[_Union[ScrubStats, _Mapping]] = ..., ssd_codec: _Optional[_Union[SsdCodec, _Mapping]] = ..., admission: _Optional[_Union[AdmissionStats, _Mapping]] = ..., host_memory: _Optional[_Union[HostMemoryStats, _Mapping]] = ..., index_bytes: _Optional[int] = ..., host_only_count: _Optional[int] = ..., ssd_files: _Optional[_Union[SsdFiles, _Mapping]] = ..., owners: _Optional[_Union[OwnersStats, _Mapping]] = ..., ssd_encryption: _Optional[_Union[SsdEncryption, _Mapping]] = ...) -> None: ...

class SsdEncryption(_message.Message):
    __slots__ = ("method", "master_fingerprint", "encrypted_count", "clear_count", "data_key_count", "destroyed_key_count", "clear_segment_count")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    MASTER_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    ENCRYPTED_COUNT_FIELD_NUMBER: _ClassVar[int]
    CLEAR_COUNT_FIELD_NUMBER: _ClassVar[int]
    DATA_KEY_COUNT_FIELD_NUMBER: _ClassVar[int]
    DESTROYED_KEY_COUNT_FIELD_NUMBER: _ClassVar[int]
    CLEAR_SEGMENT_COUNT_FIELD_NUMBER: _ClassVar[int]
    method: str
    master_fingerprint: str
    encrypted_count: int
    clear_count: int
    data_key_count: int
    destroyed_key_count: int
    clear_segment_count: int
    def __init__(self, method: _Optional[str] = ..., master_fingerprint: _Optional[str] = ..., encrypted_count: _Optional[int] = ..., clear_count: _Optional[int] = ..., data_key_count: _Optional[int] = ..., destroyed_key_count: _Optional[int] = ..., clear_segment_count: _Optional[int] = ...) -> None: ...

class OwnersStats(_message.Message):
    __slots__ = ("owners", "owner_count", "total", "quotas")
    OWNERS_FIELD_NUMBER: _ClassVar[int]
    OWNER_COUNT_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    QUOTAS_FIELD_NUMBER: _ClassVar[int]
    owners: _containers.RepeatedCompositeFieldContainer[OwnerStats]
    owner_count: int
    total: OwnerStats
    quotas: _containers.RepeatedCompositeFieldContainer[QuotaStats]
    def __init__(self, owners: _Optional[_Iterable[_Union[OwnerStats, _Mapping]]] = ..., owner_count: _Optional[int] = ..., total: _Optional[_Union[OwnerStats, _Mapping]] = ..., quotas: _Optional[_Iterable[_Union[QuotaStats, _Mapping]]] = ...) -> None: ...

class QuotaStats(_message.Message):
    __slots__ = ("owner", "tiers")
    OWNER_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    owner: str
    tiers: _containers.RepeatedCompositeFieldContainer[QuotaTierStats]
    def __init__(self, owner: _Optional[str] = ..., tiers: _Optional[_Iterable[_Union[QuotaTierStats, _Mapping]]] = ...) -> None: ...

class QuotaTierStats(_message.Message):
    __slots__ = ("tier", "payload_bytes", "soft_bytes", "hard_bytes", "reserved_bytes")
    TIER_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    SOFT_BYTES_FIELD_NUMBER: _ClassVar[int]
    HARD_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESERVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    tier: _block_pb2.Tier
    payload_bytes: int
    soft_bytes: int
    hard_bytes: int
    reserved_bytes: int
    def __init__(self, tier: _Optional[_Union[_block_pb2.Tier, str]] = ..., payload_bytes: _Optional[int] = ..., soft_bytes: _Optional[int] = ..., hard_bytes: _Optional[int] = ..., reserved_bytes: _Optional[int] = ...) -> None: ...

class OwnerStats(_message.Message):
    __slots__ = ("owner", "tiers")
    OWNER_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    owner: str
    tiers: _containers.RepeatedCompositeFieldContainer[OwnerTierStats]
    def __init__(self, owner: _Optional[str] = ..., tiers: _Optional[_Iterable[_Union[OwnerTierStats, _Mapping]]] = ...) -> None: ...

class OwnerTierStats(_message.Message):
    __slots__ = ("tier", "block_count", "payload_bytes")
    TIER_FIELD_NUMBER: _ClassVar[int]
    BLOCK_COUNT_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    tier: _block_pb2.Tier
    block_count: int
    payload_bytes: int
    def __init__(self, tier: _Optional[_Union[_block_pb2.Tier, str]] = ..., block_count: _Optional[int] = ..., payload_bytes: _Optional[int] = ...) -> None: ...

class VerifyBlocksRequest(_message.Message):
    __slots__ = ("bytes_per_second",)
    BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    bytes_per_second: int
    def __init__(self, bytes_per_second: _Optional[int] = ...) -> None: ...

class VerifyBlocksResponse(_message.Message):
    __slots__ = ("progress", "done")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    progress: ScrubPass
    done: bool
    def __init__(self, progress: _Optional[_Union[ScrubPass, _Mapping]] = ..., done: bool = ...) -> None: ...

class ScrubPass(_message.Message):
    __slots__ = ("checked_count", "checked_bytes", "corrupt_count", "unreadable_count", "dropped_count", "total_count", "total_bytes", "duration_seconds")
    CHECKED_COUNT_FIELD_NUMBER: _ClassVar[int]
    CHECKED_BYTES_FIELD_NUMBER: _ClassVar[int]
    CORRUPT_COUNT_FIELD_NUMBER: _ClassVar[int]
    UNREADABLE_COUNT_FIELD_NUMBER: _ClassVar[int]
    DROPPED_COUNT_FIELD_NUMBER: _ClassVar[int]
    TOTAL_COUNT_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    DURATION_SECONDS_FIELD_NUMBER: _ClassVar[int]
    checked_count: int
    checked_bytes: int
    corrupt_count: int
    unreadable_count: int
    dropped_count: int
    total_count: int
    total_bytes: int
    duration_seconds: float
    def __init__(self, checked_count: _Optional[int] = ..., checked_bytes: _Optional[int] = ..., corrupt_count: _Optional[int] = ..., unreadable_count: _Optional[int] = ..., dropped_count: _Optional[int] = ..., total_count: _Optional[int] = ..., total_bytes: _Optional[int] = ..., duration_seconds: _Optional[float] = ...) -> None: ...

class ScrubStats(_message.Message):
    __slots__ = ("budget_bytes_per_second", "pass_count", "running", "last")
    BUDGET_BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    PASS_COUNT_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    budget_bytes_per_second: int
    pass_count: int
    running: ScrubPass
    last: ScrubPass
    def __init__(self, budget_bytes_per_second: _Optional[int] = ..., pass_count: _Optional[int] = ..., running: _Optional[_Union[ScrubPass, _Mapping]] = ..., last: _Optional[_Union[ScrubPass, _Mapping]] = ...) -> None: ...

class SsdCodec(_message.Message):
    __slots__ = ("name", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    reason: str
    def __init__(self, name: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class SsdFiles(_message.Message):
    __slots__ = ("io_mode", "io_problem", "written_since", "written_before", "written_payload_bytes", "written_device_bytes")
    IO_MODE_FIELD_NUMBER: _ClassVar[int]
    IO_PROBLEM_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_SINCE_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_BEFORE_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_DEVICE_BYTES_FIELD_NUMBER: _ClassVar[int]
    io_mode: str
    io_problem: str
    written_since: _timestamp_pb2.Timestamp
    written_before: bool
    written_payload_bytes: int
    written_device_bytes: int
    def __init__(self, io_mode: _Optional[str] = ..., io_problem: _Optional[str] = ..., written_since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., written_before: bool = ..., written_payload_bytes: _Optional[int] = ..., written_device_bytes: _Optional[int] = ...) -> None: ...

class TierStats(_message.Message):
    __slots__ = ("tier", "capacity_bytes", "used_bytes", "block_count", "payload_bytes", "evicted_count", "written_bytes", "read_bytes")
    TIER_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    BLOCK_COUNT_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    EVICTED_COUNT_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_BYTES_FIELD_NUMBER: _ClassVar[int]
    READ_BYTES_FIELD_NUMBER: _ClassVar[int]
    tier: _block_pb2.Tier
    capacity_bytes: int
    used_bytes: int
    block_count: int
    payload_bytes: int
    evicted_count: int
    written_bytes: int
    read_bytes: int
    def __init__(self, tier: _Optional[_Union[_block_pb2.Tier, str]] = ..., capacity_bytes: _Optional[int] = ..., used_bytes: _Optional[int] = ..., block_count: _Optional[int] = ..., payload_bytes: _Optional[int] = ..., evicted_count: _Optional[int] = ..., written_bytes: _Optional[int] = ..., read_bytes: _Optional[int] = ...) -> None: ...

class AdmissionStats(_message.Message):
    __slots__ = ("rule", "declined_count", "write_bytes_per_day", "allowed_bytes", "over_budget_count", "over_budget_bytes", "lost_hit_count", "write_when", "allowed_new_bytes", "starved_block_bytes", "starved_needs_bytes_per_day")
    RULE_FIELD_NUMBER: _ClassVar[int]
    DECLINED_COUNT_FIELD_NUMBER: _ClassVar[int]
    WRITE_BYTES_PER_DAY_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_BYTES_FIELD_NUMBER: _ClassVar[int]
    OVER_BUDGET_COUNT_FIELD_NUMBER: _ClassVar[int]
    OVER_BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOST_HIT_COUNT_FIELD_NUMBER: _ClassVar[int]
    WRITE_WHEN_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_NEW_BYTES_FIELD_NUMBER: _ClassVar[int]
    STARVED_BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    STARVED_NEEDS_BYTES_PER_DAY_FIELD_NUMBER: _ClassVar[int]
    rule: str
    declined_count: int
    write_bytes_per_day: int
    allowed_bytes: int
    over_budget_count: int
    over_budget_bytes: int
    lost_hit_count: int
    write_when: str
    allowed_new_bytes: int
    starved_block_bytes: int
    starved_needs_bytes_per_day: int
    def __init__(self, rule: _Optional[str] = ..., declined_count: _Optional[int] = ..., write_bytes_per_day: _Optional[int] = ..., allowed_bytes: _Optional[int] = ..., over_budget_count: _Optional[int] = ..., over_budget_bytes: _Optional[int] = ..., lost_hit_count: _Optional[int] = ..., write_when: _Optional[str] = ..., allowed_new_bytes: _Optional[int] = ..., starved_block_bytes: _Optional[int] = ..., starved_needs_bytes_per_day: _Optional[int] = ...) -> None: ...

class HostMemoryStats(_message.Message):
    __slots__ = ("extent_bytes", "free_extent_count", "classes", "huge_page_bytes")
    EXTENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_EXTENT_COUNT_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    HUGE_PAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    extent_bytes: int
    free_extent_count: int
    classes: _containers.RepeatedCompositeFieldContainer[SlabClass]
    huge_page_bytes: int
    def __init__(self, extent_bytes: _Optional[int] = ..., free_extent_count: _Optional[int] = ..., classes: _Optional[_Iterable[_Union[SlabClass, _Mapping]]] = ..., huge_page_bytes: _Optional[int] = ...) -> None: ...

class SlabClass(_message.Message):
    __slots__ = ("slab_bytes", "extent_count", "used_count", "free_count")
    SLAB_BYTES_FIELD_NUMBER: _ClassVar[int]
    EXTENT_COUNT_FIELD_NUMBER: _ClassVar[int]
    USED_COUNT_FIELD_NUMBER: _ClassVar[int]
    FREE_COUNT_FIELD_NUMBER: _ClassVar[int]
    slab_bytes: int
    extent_count: int
    used_count: int
    free_count: int
    def __init__(self, slab_bytes: _Optional[int] = ..., extent_count: _Optional[int] = ..., used_count: _Optional[int] = ..., free_count: _Optional[int] = ...) -> None: ...

class RecoveryStats(_message.Message):
    __slots__ = ("kept_count", "dropped_count", "repaired_count", "kept_bytes", "duration_seconds", "problems")
    KEPT_COUNT_FIELD_NUMBER: _ClassVar[int]
    DROPPED_COUNT_FIELD_NUMBER: _ClassVar[int]
    REPAIRED_COUNT_FIELD_NUMBER: _ClassVar[int]
    KEPT_BYTES_FIELD_NUMBER: _ClassVar[int]
    DURATION_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    kept_count: int
    dropped_count: int
    repaired_count: int
    kept_bytes: int
    duration_seconds: float
    problems: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, kept_count: _Optional[int] = ..., dropped_count: _Optional[int] = ..., repaired_count: _Optional[int] = ..., kept_bytes: _Optional[int] = ..., duration_seconds: _Optional[float] = ..., problems: _Optional[_Iterable[str]] = ...) -> None: ...
