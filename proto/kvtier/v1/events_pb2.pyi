from kvtier.v1 import block_pb2 as _block_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EventKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EVENT_KIND_UNSPECIFIED: _ClassVar[EventKind]
    EVENT_KIND_STORED: _ClassVar[EventKind]
    EVENT_KIND_PROMOTED: _ClassVar[EventKind]
    EVENT_KIND_DEMOTED: _ClassVar[EventKind]
    EVENT_KIND_EVICTED: _ClassVar[EventKind]

class SnapshotState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SNAPSHOT_STATE_UNSPECIFIED: _ClassVar[SnapshotState]
    SNAPSHOT_STATE_UNDER_WAY: _ClassVar[SnapshotState]
    SNAPSHOT_STATE_DONE: _ClassVar[SnapshotState]
EVENT_KIND_UNSPECIFIED: EventKind
EVENT_KIND_STORED: EventKind
EVENT_KIND_PROMOTED: EventKind
EVENT_KIND_DEMOTED: EventKind
EVENT_KIND_EVICTED: EventKind
SNAPSHOT_STATE_UNSPECIFIED: SnapshotState
SNAPSHOT_STATE_UNDER_WAY: SnapshotState
SNAPSHOT_STATE_DONE: SnapshotState

class EventPosition(_message.Message):
    __slots__ = ("instance_id", "sequence")
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    instance_id: str
    sequence: int
    def __init__(self, instance_id: _Optional[str] = ..., sequence: _Optional[int] = ...) -> None: ...

class EventRun(_message.Message):
    __slots__ = ("kind", "tier", "reason", "namespace_id", "block_bytes", "block_hashes", "parent_hashes")
    KIND_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_ID_FIELD_NUMBER: _ClassVar[int]
    BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    BLOCK_HASHES_FIELD_NUMBER: _ClassVar[int]
    PARENT_HASHES_FIELD_NUMBER: _ClassVar[int]
    kind: EventKind
    tier: _block_pb2.Tier
    reason: _block_pb2.MissReason
    namespace_id: bytes
    block_bytes: int
    block_hashes: bytes
    parent_hashes: bytes
    def __init__(self, kind: _Optional[_Union[EventKind, str]] = ..., tier: _Optional[_Union[_block_pb2.Tier, str]] = ..., reason: _Optional[_Union[_block_pb2.MissReason, str]] = ..., namespace_id: _Optional[bytes] = ..., block_bytes: _Optional[int] = ..., block_hashes: _Optional[bytes] = ..., parent_hashes: _Optional[bytes] = ...) -> None: ...

class SnapshotRun(_message.Message):
    __slots__ = ("tiers", "namespace_id", "block_bytes", "block_hashes", "parent_hashes")
    TIERS_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_ID_FIELD_NUMBER: _ClassVar[int]
    BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    BLOCK_HASHES_FIELD_NUMBER: _ClassVar[int]
    PARENT_HASHES_FIELD_NUMBER: _ClassVar[int]
    tiers: _containers.RepeatedScalarFieldContainer[_block_pb2.Tier]
    namespace_id: bytes
    block_bytes: int
    block_hashes: bytes
    parent_hashes: bytes
    def __init__(self, tiers: _Optional[_Iterable[_Union[_block_pb2.Tier, str]]] = ..., namespace_id: _Optional[bytes] = ..., block_bytes: _Optional[int] = ..., block_hashes: _Optional[bytes] = ..., parent_hashes: _Optional[bytes] = ...) -> None: ...

class WatchEventsRequest(_message.Message):
    __slots__ = ("after", "snapshot")
    AFTER_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    after: EventPosition
    snapshot: bool
    def __init__(self, after: _Optional[_Union[EventPosition, _Mapping]] = ..., snapshot: bool = ...) -> None: ...

class WatchEventsResponse(_message.Message):
    __slots__ = ("position", "events", "blocks", "snapshot")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    position: EventPosition
    events: _containers.RepeatedCompositeFieldContainer[EventRun]
    blocks: _containers.RepeatedCompositeFieldContainer[SnapshotRun]
    snapshot: SnapshotState
    def __init__(self, position: _Optional[_Union[EventPosition, _Mapping]] = ..., events: _Optional[_Iterable[_Union[EventRun, _Mapping]]] = ..., blocks: _Optional[_Iterable[_Union[SnapshotRun, _Mapping]]] = ..., snapshot: _Optional[_Union[SnapshotState, str]] = ...) -> None: ...
