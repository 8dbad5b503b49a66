import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FundingKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FUNDING_KIND_UNSPECIFIED: _ClassVar[FundingKind]
    FUNDING_KIND_TOP_UP: _ClassVar[FundingKind]
    FUNDING_KIND_GRANT: _ClassVar[FundingKind]
    FUNDING_KIND_WITHDRAWAL: _ClassVar[FundingKind]
FUNDING_KIND_UNSPECIFIED: FundingKind
FUNDING_KIND_TOP_UP: FundingKind
FUNDING_KIND_GRANT: FundingKind
FUNDING_KIND_WITHDRAWAL: FundingKind

class FundBalanceRequest(_message.Message):
    __slots__ = ("funding_id", "tenant_id", "kind", "amount", "currency_code", "expire_time", "reason", "operator")
    FUNDING_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    CURRENCY_CODE_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    funding_id: str
    tenant_id: str
    kind: FundingKind
    amount: str
    currency_code: str
    expire_time: _timestamp_pb2.Timestamp
    reason: str
    operator: str
    def __init__(self, funding_id: _Optional[str] = ..., tenant_id: _Optional[str] = ..., kind: _Optional[_Union[FundingKind, str]] = ..., amount: _Optional[str] = ..., currency_code: _Optional[str] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., reason: _Optional[str] = ..., operator: _Optional[str] = ...) -> None: ...

class FundBalanceResponse(_message.Message):
    __slots__ = ("funding", "already_there")
    FUNDING_FIELD_NUMBER: _ClassVar[int]
    ALREADY_THERE_FIELD_NUMBER: _ClassVar[int]
    funding: Funding
    already_there: bool
    def __init__(self, funding: _Optional[_Union[Funding, _Mapping]] = ..., already_there: bool = ...) -> None: ...

class Funding(_message.Message):
    __slots__ = ("funding_id", "tenant_id", "kind", "amount", "currency_code", "expire_time", "reason", "operator", "create_time", "ledger_position")
    FUNDING_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    CURRENCY_CODE_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    LEDGER_POSITION_FIELD_NUMBER: _ClassVar[int]
    funding_id: str
    tenant_id: str
    kind: FundingKind
    amount: str
    currency_code: str
    expire_time: _timestamp_pb2.Timestamp
    reason: str
    operator: str
    create_time: _timestamp_pb2.Timestamp
    ledger_position: int
    def __init__(self, funding_id: _Optional[str] = ..., tenant_id: _Optional[str] = ..., kind: _Optional[_Union[FundingKind, str]] = ..., amount: _Optional[str] = ..., currency_code: _Optional[str] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., reason: _Optional[str] = ..., operator: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., ledger_position: _Optional[int] = ...) -> None: ...

class GetBalanceRequest(_message.Message):
    __slots__ = ("tenant_id",)
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    tenant_id: str
    def __init__(self, tenant_id: _Optional[str] = ...) -> None: ...

class GetBalanceResponse(_message.Message):
    __slots__ = ("balances",)
    BALANCES_FIELD_NUMBER: _ClassVar[int]
    balances: _containers.RepeatedCompositeFieldContainer[Balance]
    def __init__(self, balances: _Optional[_Iterable[_Union[Balance, _Mapping]]] = ...) -> None: ...

class Balance(_message.Message):
    __slots__ = ("currency_code", "total_amount", "granted_amount", "topped_up_amount", "grants")
    CURRENCY_CODE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    GRANTED_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    TOPPED_UP_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    GRANTS_FIELD_NUMBER: _ClassVar[int]
    currency_code: str
    total_amount: str
    granted_amount: str
    topped_up_amount: str
    grants: _containers.RepeatedCompositeFieldContainer[GrantLeft]
    def __init__(self, currency_code: _Optional[str] = ..., total_amount: _Optional[str] = ..., granted_amount: _Optional[str] = ..., topped_up_amount: _Optional[str] = ..., grants: _Optional[_Iterable[_Union[GrantLeft, _Mapping]]] = ...) -> None: ...

class GrantLeft(_message.Message):
    __slots__ = ("ledger_position", "left_amount", "expire_time")
    LEDGER_POSITION_FIELD_NUMBER: _ClassVar[int]
    LEFT_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    ledger_position: int
    left_amount: str
    expire_time: _timestamp_pb2.Timestamp
    def __init__(self, ledger_position: _Optional[int] = ..., left_amount: _Optional[str] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...
