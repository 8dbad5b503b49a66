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

class AcquireState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACQUIRE_STATE_UNSPECIFIED: _ClassVar[AcquireState]
    ACQUIRE_STATE_RUNNING: _ClassVar[AcquireState]
    ACQUIRE_STATE_ENDED: _ClassVar[AcquireState]
    ACQUIRE_STATE_GIVEN_UP: _ClassVar[AcquireState]
ACQUIRE_STATE_UNSPECIFIED: AcquireState
ACQUIRE_STATE_RUNNING: AcquireState
ACQUIRE_STATE_ENDED: AcquireState
ACQUIRE_STATE_GIVEN_UP: AcquireState

class ExplainPrefixRequest(_message.Message):
    __slots__ = ("namespace_id", "block_hashes", "block_bytes", "whole_units", "other_scope_hashes")
    NAMESPACE_ID_FIELD_NUMBER: _ClassVar[int]
    BLOCK_HASHES_FIELD_NUMBER: _ClassVar[int]
    BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    WHOLE_UNITS_FIELD_NUMBER: _ClassVar[int]
    OTHER_SCOPE_HASHES_FIELD_NUMBER: _ClassVar[int]
    namespace_id: bytes
    block_hashes: bytes
    block_bytes: int
    whole_units: bool
    other_scope_hashes: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, namespace_id: _Optional[bytes] = ..., block_hashes: _Optional[bytes] = ..., block_bytes: _Optional[int] = ..., whole_units: bool = ..., other_scope_hashes: _Optional[_Iterable[bytes]] = ...) -> None: ...

class ExplainPrefixResponse(_message.Message):
    __slots__ = ("present_count", "tiers", "shares", "load_time", "ssd_rate", "miss_reason", "divergence", "stored_count", "other_scope")
    PRESENT_COUNT_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    LOAD_TIME_FIELD_NUMBER: _ClassVar[int]
    SSD_RATE_FIELD_NUMBER: _ClassVar[int]
    MISS_REASON_FIELD_NUMBER: _ClassVar[int]
    DIVERGENCE_FIELD_NUMBER: _ClassVar[int]
    STORED_COUNT_FIELD_NUMBER: _ClassVar[int]
    OTHER_SCOPE_FIELD_NUMBER: _ClassVar[int]
    present_count: int
    tiers: bytes
    shares: _containers.RepeatedCompositeFieldContainer[TierShare]
    load_time: _duration_pb2.Duration
    ssd_rate: ReadRate
    miss_reason: _block_pb2.MissReason
    divergence: Divergence
    stored_count: int
    other_scope: OtherScope
    def __init__(self, present_count: _Optional[int] = ..., tiers: _Optional[bytes] = ..., shares: _Optional[_Iterable[_Union[TierShare, _Mapping]]] = ..., load_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., ssd_rate: _Optional[_Union[ReadRate, _Mapping]] = ..., miss_reason: _Optional[_Union[_block_pb2.MissReason, str]] = ..., divergence: _Optional[_Union[Divergence, _Mapping]] = ..., stored_count: _Optional[int] = ..., other_scope: _Optional[_Union[OtherScope, _Mapping]] = ...) -> None: ...

class OtherScope(_message.Message):
    __slots__ = ("index", "present_count")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    PRESENT_COUNT_FIELD_NUMBER: _ClassVar[int]
    index: int
    present_count: int
    def __init__(self, index: _Optional[int] = ..., present_count: _Optional[int] = ...) -> None: ...

class TierShare(_message.Message):
    __slots__ = ("tier", "block_count", "payload_bytes")
    TIER_FIELD_NUMBER: _ClassVar[int]
    BLOCK_COUNT_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    tier: _block_pb2.Tier
    block_count: int
    payload_bytes: int
    def __init__(self, tier: _Optional[_Union[_block_pb2.Tier, str]] = ..., block_count: _Optional[int] = ..., payload_bytes: _Optional[int] = ...) -> None: ...

class ReadRate(_message.Message):
    __slots__ = ("bytes_per_second", "waiting_bytes")
    BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    WAITING_BYTES_FIELD_NUMBER: _ClassVar[int]
    bytes_per_second: int
    waiting_bytes: int
    def __init__(self, bytes_per_second: _Optional[int] = ..., waiting_bytes: _Optional[int] = ...) -> None: ...

class Divergence(_message.Message):
    __slots__ = ("index", "chain_count", "nearest")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    CHAIN_COUNT_FIELD_NUMBER: _ClassVar[int]
    NEAREST_FIELD_NUMBER: _ClassVar[int]
    index: int
    chain_count: int
    nearest: CachedChain
    def __init__(self, index: _Optional[int] = ..., chain_count: _Optional[int] = ..., nearest: _Optional[_Union[CachedChain, _Mapping]] = ...) -> None: ...

class CachedChain(_message.Message):
    __slots__ = ("hash_prefix", "depth", "block_count", "shares", "last_use_time", "whole")
    HASH_PREFIX_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    BLOCK_COUNT_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    LAST_USE_TIME_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    hash_prefix: bytes
    depth: int
    block_count: int
    shares: _containers.RepeatedCompositeFieldContainer[TierShare]
    last_use_time: _timestamp_pb2.Timestamp
    whole: bool
    def __init__(self, hash_prefix: _Optional[bytes] = ..., depth: _Optional[int] = ..., block_count: _Optional[int] = ..., shares: _Optional[_Iterable[_Union[TierShare, _Mapping]]] = ..., last_use_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., whole: bool = ...) -> None: ...

class ExplainAcquireRequest(_message.Message):
    __slots__ = ("request_id", "lease_id")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    lease_id: str
    def __init__(self, request_id: _Optional[str] = ..., lease_id: _Optional[str] = ...) -> None: ...

class ExplainAcquireResponse(_message.Message):
    __slots__ = ("acquires",)
    ACQUIRES_FIELD_NUMBER: _ClassVar[int]
    acquires: _containers.RepeatedCompositeFieldContainer[AcquireRecord]
    def __init__(self, acquires: _Optional[_Iterable[_Union[AcquireRecord, _Mapping]]] = ...) -> None: ...

class AcquireRecord(_message.Message):
    __slots__ = ("request_id", "lease_id", "client_name", "namespace_id", "start_time", "state", "asked_count", "shares", "matched_count", "match_reason", "ready_count", "miss_reason", "duration", "divergence", "missing_cached_now")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_NAME_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_ID_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ASKED_COUNT_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    MATCHED_COUNT_FIELD_NUMBER: _ClassVar[int]
    MATCH_REASON_FIELD_NUMBER: _ClassVar[int]
    READY_COUNT_FIELD_NUMBER: _ClassVar[int]
    MISS_REASON_FIELD_NUMBER: _ClassVar[int]
    DURATION_FIELD_NUMBER: _ClassVar[int]
    DIVERGENCE_FIELD_NUMBER: _ClassVar[int]
    MISSING_CACHED_NOW_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    lease_id: str
    client_name: str
    namespace_id: bytes
    start_time: _timestamp_pb2.Timestamp
    state: AcquireState
    asked_count: int
    shares: _containers.RepeatedCompositeFieldContainer[TierShare]
    matched_count: int
    match_reason: _block_pb2.MissReason
    ready_count: int
    miss_reason: _block_pb2.MissReason
    duration: _duration_pb2.Duration
    divergence: Divergence
    missing_cached_now: bool
    def __init__(self, request_id: _Optional[str] = ..., lease_id: _Optional[str] = ..., client_name: _Optional[str] = ..., namespace_id: _Optional[bytes] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., state: _Optional[_Union[AcquireState, str]] = ..., asked_count: _Optional[int] = ..., shares: _Optional[_Iterable[_Union[TierShare, _Mapping]]] = ..., matched_count: _Optional[int] = ..., match_reason: _Optional[_Union[_block_pb2.MissReason, str]] = ..., ready_count: _Optional[int] = ..., miss_reason: _Optional[_Union[_block_pb2.MissReason, str]] = ..., duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., divergence: _Optional[_Union[Divergence, _Mapping]] = ..., missing_cached_now: bool = ...) -> None: ...

class ListTreeRequest(_message.Message):
    __slots__ = ("namespace_id", "under_block_hash", "page_size", "page_token")
    NAMESPACE_ID_FIELD_NUMBER: _ClassVar[int]
    UNDER_BLOCK_HASH_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    namespace_id: bytes
    under_block_hash: bytes
    page_size: int
    page_token: bytes
    def __init__(self, namespace_id: _Optional[bytes] = ..., under_block_hash: _Optional[bytes] = ..., page_size: _Optional[int] = ..., page_token: _Optional[bytes] = ...) -> None: ...

class ListTreeResponse(_message.Message):
    __slots__ = ("nodes", "next_page_token", "changed")
    NODES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[TreeNode]
    next_page_token: bytes
    changed: bool
    def __init__(self, nodes: _Optional[_Iterable[_Union[TreeNode, _Mapping]]] = ..., next_page_token: _Optional[bytes] = ..., changed: bool = ...) -> None: ...

class TreeNode(_message.Message):
    __slots__ = ("block_hash", "last_block_hash", "parent_block_hash", "namespace_id", "block_bytes", "block_count", "shares", "hit_count", "last_use_time", "pinned_count", "child_count", "host_leaving_rank", "ssd_leaving_count", "owner")
    BLOCK_HASH_FIELD_NUMBER: _ClassVar[int]
    LAST_BLOCK_HASH_FIELD_NUMBER: _ClassVar[int]
    PARENT_BLOCK_HASH_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_ID_FIELD_NUMBER: _ClassVar[int]
    BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    BLOCK_COUNT_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    HIT_COUNT_FIELD_NUMBER: _ClassVar[int]
    LAST_USE_TIME_FIELD_NUMBER: _ClassVar[int]
    PINNED_COUNT_FIELD_NUMBER: _ClassVar[int]
    CHILD_COUNT_FIELD_NUMBER: _ClassVar[int]
    HOST_LEAVING_RANK_FIELD_NUMBER: _ClassVar[int]
    SSD_LEAVING_COUNT_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    block_hash: bytes
    last_block_hash: bytes
    parent_block_hash: bytes
    namespace_id: bytes
    block_bytes: int
    block_count: int
    shares: _containers.RepeatedCompositeFieldContainer[TierShare]
    hit_count: int
    last_use_time: _timestamp_pb2.Timestamp
    pinned_count: int
    child_count: int
    host_leaving_rank: int
    ssd_leaving_count: int
    owner: str
    def __init__(self, block_hash: _Optional[bytes] = ..., last_block_hash: _Optional[bytes] = ..., parent_block_hash: _Optional[bytes] = ..., namespace_id: _Optional[bytes] = ..., block_bytes: _Optional[int] = ..., block_count: _Optional[int] = ..., shares: _Optional[_Iterable[_Union[TierShare, _Mapping]]] = ..., hit_count: _Optional[int] = ..., last_use_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., pinned_count: _Optional[int] = ..., child_count: _Optional[int] = ..., host_leaving_rank: _Optional[int] = ..., ssd_leaving_count: _Optional[int] = ..., owner: _Optional[str] = ...) -> None: ...
