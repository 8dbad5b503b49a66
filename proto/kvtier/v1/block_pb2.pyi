from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from typing import ClassVar as _ClassVar

DESCRIPTOR: _descriptor.FileDescriptor

class Tier(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TIER_UNSPECIFIED: _ClassVar[Tier]
    TIER_GPU: _ClassVar[Tier]
    TIER_HOST: _ClassVar[Tier]
    TIER_SSD: _ClassVar[Tier]
    TIER_SHARED: _ClassVar[Tier]

class MissReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MISS_REASON_UNSPECIFIED: _ClassVar[MissReason]
    MISS_REASON_NEVER_STORED: _ClassVar[MissReason]
    MISS_REASON_EVICTED: _ClassVar[MissReason]
    MISS_REASON_EXPIRED: _ClassVar[MissReason]
    MISS_REASON_OTHER_SCOPE: _ClassVar[MissReason]
    MISS_REASON_OTHER_NAMESPACE: _ClassVar[MissReason]
    MISS_REASON_TOO_SHORT: _ClassVar[MissReason]
    MISS_REASON_CORRUPT: _ClassVar[MissReason]
    MISS_REASON_DEADLINE: _ClassVar[MissReason]
    MISS_REASON_QUOTA: _ClassVar[MissReason]
    MISS_REASON_NO_STORE: _ClassVar[MissReason]
    MISS_REASON_UNAVAILABLE: _ClassVar[MissReason]
    MISS_REASON_ARENA_FULL: _ClassVar[MissReason]
    MISS_REASON_RECOMPUTE_FASTER: _ClassVar[MissReason]
    MISS_REASON_PURGED: _ClassVar[MissReason]
TIER_UNSPECIFIED: Tier
TIER_GPU: Tier
TIER_HOST: Tier
TIER_SSD: Tier
TIER_SHARED: Tier
MISS_REASON_UNSPECIFIED: MissReason
MISS_REASON_NEVER_STORED: MissReason
MISS_REASON_EVICTED: MissReason
MISS_REASON_EXPIRED: MissReason
MISS_REASON_OTHER_SCOPE: MissReason
MISS_REASON_OTHER_NAMESPACE: MissReason
MISS_REASON_TOO_SHORT: MissReason
MISS_REASON_CORRUPT: MissReason
MISS_REASON_DEADLINE: MissReason
MISS_REASON_QUOTA: MissReason
MISS_REASON_NO_STORE: MissReason
MISS_REASON_UNAVAILABLE: MissReason
MISS_REASON_ARENA_FULL: MissReason
MISS_REASON_RECOMPUTE_FASTER: MissReason
MISS_REASON_PURGED: MissReason
