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

class PurgeKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PURGE_KIND_UNSPECIFIED: _ClassVar[PurgeKind]
    PURGE_KIND_PREFIX: _ClassVar[PurgeKind]
    PURGE_KIND_REQUEST: _ClassVar[PurgeKind]
    PURGE_KIND_SESSION: _ClassVar[PurgeKind]
    PURGE_KIND_NAMESPACE: _ClassVar[PurgeKind]
    PURGE_KIND_EVERYTHING: _ClassVar[PurgeKind]
    PURGE_KIND_OWNER: _ClassVar[PurgeKind]

class KeyDestruction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KEY_DESTRUCTION_UNSPECIFIED: _ClassVar[KeyDestruction]
    KEY_DESTRUCTION_DURABLE: _ClassVar[KeyDestruction]
    KEY_DESTRUCTION_PENDING: _ClassVar[KeyDestruction]
    KEY_DESTRUCTION_NONE: _ClassVar[KeyDestruction]

class SharedForgetting(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SHARED_FORGETTING_UNSPECIFIED: _ClassVar[SharedForgetting]
    SHARED_FORGETTING_WHOLE: _ClassVar[SharedForgetting]
    SHARED_FORGETTING_KNOWN: _ClassVar[SharedForgetting]
    SHARED_FORGETTING_PENDING: _ClassVar[SharedForgetting]
    SHARED_FORGETTING_NONE: _ClassVar[SharedForgetting]

class SsdForgetting(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SSD_FORGETTING_UNSPECIFIED: _ClassVar[SsdForgetting]
    SSD_FORGETTING_DURABLE: _ClassVar[SsdForgetting]
    SSD_FORGETTING_PENDING: _ClassVar[SsdForgetting]
    SSD_FORGETTING_NONE: _ClassVar[SsdForgetting]
PURGE_KIND_UNSPECIFIED: PurgeKind
PURGE_KIND_PREFIX: PurgeKind
PURGE_KIND_REQUEST: PurgeKind
PURGE_KIND_SESSION: PurgeKind
PURGE_KIND_NAMESPACE: PurgeKind
PURGE_KIND_EVERYTHING: PurgeKind
PURGE_KIND_OWNER: PurgeKind
KEY_DESTRUCTION_UNSPECIFIED: KeyDestruction
KEY_DESTRUCTION_DURABLE: KeyDestruction
KEY_DESTRUCTION_PENDING: KeyDestruction
KEY_DESTRUCTION_NONE: KeyDestruction
SHARED_FORGETTING_UNSPECIFIED: SharedForgetting
SHARED_FORGETTING_WHOLE: SharedForgetting
SHARED_FORGETTING_KNOWN: SharedForgetting
SHARED_FORGETTING_PENDING: SharedForgetting
SHARED_FORGETTING_NONE: SharedForgetting
SSD_FORGETTING_UNSPECIFIED: SsdForgetting
SSD_FORGETTING_DURABLE: SsdForgetting
SSD_FORGETTING_PENDING: SsdForgetting
SSD_FORGETTING_NONE: SsdForgetting

class Pin(_message.Message):
    __slots__ = ("pin_id", "namespace_id", "block_hash", "block_count", "payload_bytes", "owner", "create_time", "expire_time", "cached_count", "ssd_count", "survives_restart")
    PIN_ID_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_ID_FIELD_NUMBER: _ClassVar[int]
    BLOCK_HASH_FIELD_NUMBER: _ClassVar[int]
    BLOCK_COUNT_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    CACHED_COUNT_FIELD_NUMBER: _ClassVar[int]
    SSD_COUNT_FIELD_NUMBER: _ClassVar[int]
    SURVIVES_RESTART_FIELD_NUMBER: _ClassVar[int]
    pin_id: str
    namespace_id: bytes
    block_hash: bytes
    block_count: int
    payload_bytes: int
    owner: str
    create_time: _timestamp_pb2.Timestamp
    expire_time: _timestamp_pb2.Timestamp
    cached_count: int
    ssd_count: int
    survives_restart: bool
    def __init__(self, pin_id: _Optional[str] = ..., namespace_id: _Optional[bytes] = ..., block_hash: _Optional[bytes] = ..., block_count: _Optional[int] = ..., payload_bytes: _Optional[int] = ..., owner: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., cached_count: _Optional[int] = ..., ssd_count: _Optional[int] = ..., survives_restart: bool = ...) -> None: ...

class PinPrefixRequest(_message.Message):
    __slots__ = ("namespace_id", "block_hash", "owner", "ttl")
    NAMESPACE_ID_FIELD_NUMBER: _ClassVar[int]
    BLOCK_HASH_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    namespace_id: bytes
    block_hash: bytes
    owner: str
    ttl: _duration_pb2.Duration
    def __init__(self, namespace_id: _Optional[bytes] = ..., block_hash: _Optional[bytes] = ..., owner: _Optional[str] = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class PinPrefixResponse(_message.Message):
    __slots__ = ("pin",)
    PIN_FIELD_NUMBER: _ClassVar[int]
    pin: Pin
    def __init__(self, pin: _Optional[_Union[Pin, _Mapping]] = ...) -> None: ...

class UnpinPrefixRequest(_message.Message):
    __slots__ = ("pin_id",)
    PIN_ID_FIELD_NUMBER: _ClassVar[int]
    pin_id: str
    def __init__(self, pin_id: _Optional[str] = ...) -> None: ...

class UnpinPrefixResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PrewarmPrefixRequest(_message.Message):
    __slots__ = ("namespace_id", "block_hash", "bytes_max")
    NAMESPACE_ID_FIELD_NUMBER: _ClassVar[int]
    BLOCK_HASH_FIELD_NUMBER: _ClassVar[int]
    BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    namespace_id: bytes
    block_hash: bytes
    bytes_max: int
    def __init__(self, namespace_id: _Optional[bytes] = ..., block_hash: _Optional[bytes] = ..., bytes_max: _Optional[int] = ...) -> None: ...

class PrewarmPrefixResponse(_message.Message):
    __slots__ = ("block_count", "host_count", "wanted_count", "loaded_count", "loaded_bytes", "done", "miss_reason")
    BLOCK_COUNT_FIELD_NUMBER: _ClassVar[int]
    HOST_COUNT_FIELD_NUMBER: _ClassVar[int]
    WANTED_COUNT_FIELD_NUMBER: _ClassVar[int]
    LOADED_COUNT_FIELD_NUMBER: _ClassVar[int]
    LOADED_BYTES_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    MISS_REASON_FIELD_NUMBER: _ClassVar[int]
    block_count: int
    host_count: int
    wanted_count: int
    loaded_count: int
    loaded_bytes: int
    done: bool
    miss_reason: _block_pb2.MissReason
    def __init__(self, block_count: _Optional[int] = ..., host_count: _Optional[int] = ..., wanted_count: _Optional[int] = ..., loaded_count: _Optional[int] = ..., loaded_bytes: _Optional[int] = ..., done: bool = ..., miss_reason: _Optional[_Union[_block_pb2.MissReason, str]] = ...) -> None: ...

class ListPinsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListPinsResponse(_message.Message):
    __slots__ = ("pin",)
    PIN_FIELD_NUMBER: _ClassVar[int]
    pin: Pin
    def __init__(self, pin: _Optional[_Union[Pin, _Mapping]] = ...) -> None: ...

class PurgeBlocksRequest(_message.Message):
    __slots__ = ("target", "dry_run", "force", "shred")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    SHRED_FIELD_NUMBER: _ClassVar[int]
    target: PurgeTarget
    dry_run: bool
    force: bool
    shred: bool
    def __init__(self, target: _Optional[_Union[PurgeTarget, _Mapping]] = ..., dry_run: bool = ..., force: bool = ..., shred: bool = ...) -> None: ...

class PurgeBlocksResponse(_message.Message):
    __slots__ = ("receipt",)
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    receipt: PurgeReceipt
    def __init__(self, receipt: _Optional[_Union[PurgeReceipt, _Mapping]] = ...) -> None: ...

class PurgeTarget(_message.Message):
    __slots__ = ("kind", "namespace_id", "block_hash", "of_request_id", "of_session_id", "of_owner")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_ID_FIELD_NUMBER: _ClassVar[int]
    BLOCK_HASH_FIELD_NUMBER: _ClassVar[int]
    OF_REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    OF_SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    OF_OWNER_FIELD_NUMBER: _ClassVar[int]
    kind: PurgeKind
    namespace_id: bytes
    block_hash: bytes
    of_request_id: str
    of_session_id: str
    of_owner: str
    def __init__(self, kind: _Optional[_Union[PurgeKind, str]] = ..., namespace_id: _Optional[bytes] = ..., block_hash: _Optional[bytes] = ..., of_request_id: _Optional[str] = ..., of_session_id: _Optional[str] = ..., of_owner: _Optional[str] = ...) -> None: ...

class PurgeReceipt(_message.Message):
    __slots__ = ("purge_id", "instance_id", "target", "dry_run", "start_time", "end_time", "block_count", "copies", "hashes_sha256", "held_count", "ssd_forgetting", "pin_count", "shred", "shared_forgetting", "shared_left_count")
    PURGE_ID_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    BLOCK_COUNT_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    HASHES_SHA256_FIELD_NUMBER: _ClassVar[int]
    HELD_COUNT_FIELD_NUMBER: _ClassVar[int]
    SSD_FORGETTING_FIELD_NUMBER: _ClassVar[int]
    PIN_COUNT_FIELD_NUMBER: _ClassVar[int]
    SHRED_FIELD_NUMBER: _ClassVar[int]
    SHARED_FORGETTING_FIELD_NUMBER: _ClassVar[int]
    SHARED_LEFT_COUNT_FIELD_NUMBER: _ClassVar[int]
    purge_id: str
    instance_id: str
    target: PurgeTarget
    dry_run: bool
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    block_count: int
    copies: _containers.RepeatedCompositeFieldContainer[PurgedCopies]
    hashes_sha256: bytes
    held_count: int
    ssd_forgetting: SsdForgetting
    pin_count: int
    shred: Shred
    shared_forgetting: SharedForgetting
    shared_left_count: int
    def __init__(self, purge_id: _Optional[str] = ..., instance_id: _Optional[str] = ..., target: _Optional[_Union[PurgeTarget, _Mapping]] = ..., dry_run: bool = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., block_count: _Optional[int] = ..., copies: _Optional[_Iterable[_Union[PurgedCopies, _Mapping]]] = ..., hashes_sha256: _Optional[bytes] = ..., held_count: _Optional[int] = ..., ssd_forgetting: _Optional[_Union[SsdForgetting, str]] = ..., pin_count: _Optional[int] = ..., shred: _Optional[_Union[Shred, _Mapping]] = ..., shared_forgetting: _Optional[_Union[SharedForgetting, str]] = ..., shared_left_count: _Optional[int] = ...) -> None: ...

class Shred(_message.Message):
    __slots__ = ("key_ids", "destruction", "destroy_time", "clear_count", "clear_segment_count")
    KEY_IDS_FIELD_NUMBER: _ClassVar[int]
    DESTRUCTION_FIELD_NUMBER: _ClassVar[int]
    DESTROY_TIME_FIELD_NUMBER: _ClassVar[int]
    CLEAR_COUNT_FIELD_NUMBER: _ClassVar[int]
    CLEAR_SEGMENT_COUNT_FIELD_NUMBER: _ClassVar[int]
    key_ids: _containers.RepeatedScalarFieldContainer[bytes]
    destruction: KeyDestruction
    destroy_time: _timestamp_pb2.Timestamp
    clear_count: int
    clear_segment_count: int
    def __init__(self, key_ids: _Optional[_Iterable[bytes]] = ..., destruction: _Optional[_Union[KeyDestruction, str]] = ..., destroy_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., clear_count: _Optional[int] = ..., clear_segment_count: _Optional[int] = ...) -> None: ...

class PurgedCopies(_message.Message):
    __slots__ = ("tier", "copy_count", "payload_bytes")
    TIER_FIELD_NUMBER: _ClassVar[int]
    COPY_COUNT_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    tier: _block_pb2.Tier
    copy_count: int
    payload_bytes: int
    def __init__(self, tier: _Optional[_Union[_block_pb2.Tier, str]] = ..., copy_count: _Optional[int] = ..., payload_bytes: _Optional[int] = ...) -> None: ...
