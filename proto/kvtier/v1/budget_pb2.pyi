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

class BudgetPeriod(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BUDGET_PERIOD_UNSPECIFIED: _ClassVar[BudgetPeriod]
    BUDGET_PERIOD_DAY: _ClassVar[BudgetPeriod]
    BUDGET_PERIOD_MONTH: _ClassVar[BudgetPeriod]

class BudgetAlertKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BUDGET_ALERT_KIND_UNSPECIFIED: _ClassVar[BudgetAlertKind]
    BUDGET_ALERT_KIND_SPEND: _ClassVar[BudgetAlertKind]
    BUDGET_ALERT_KIND_BALANCE: _ClassVar[BudgetAlertKind]
    BUDGET_ALERT_KIND_OVERDRAWN: _ClassVar[BudgetAlertKind]
FUNDING_KIND_UNSPECIFIED: FundingKind
FUNDING_KIND_TOP_UP: FundingKind
FUNDING_KIND_GRANT: FundingKind
FUNDING_KIND_WITHDRAWAL: FundingKind
BUDGET_PERIOD_UNSPECIFIED: BudgetPeriod
BUDGET_PERIOD_DAY: BudgetPeriod
BUDGET_PERIOD_MONTH: BudgetPeriod
BUDGET_ALERT_KIND_UNSPECIFIED: BudgetAlertKind
BUDGET_ALERT_KIND_SPEND: BudgetAlertKind
BUDGET_ALERT_KIND_BALANCE: BudgetAlertKind
BUDGET_ALERT_KIND_OVERDRAWN: BudgetAlertKind

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
    __slots__ = ("currency_code", "total_amount", "granted_amount", "topped_up_amount", "held_amount", "grants")
    CURRENCY_CODE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    GRANTED_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    TOPPED_UP_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    HELD_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    GRANTS_FIELD_NUMBER: _ClassVar[int]
    currency_code: str
    total_amount: str
    granted_amount: str
    topped_up_amount: str
    held_amount: str
    grants: _containers.RepeatedCompositeFieldContainer[GrantLeft]
    def __init__(self, currency_code: _Optional[str] = ..., total_amount: _Optional[str] = ..., granted_amount: _Optional[str] = ..., topped_up_amount: _Optional[str] = ..., held_amount: _Optional[str] = ..., grants: _Optional[_Iterable[_Union[GrantLeft, _Mapping]]] = ...) -> None: ...

class GrantLeft(_message.Message):
    __slots__ = ("ledger_position", "left_amount", "expire_time")
    LEDGER_POSITION_FIELD_NUMBER: _ClassVar[int]
    LEFT_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    ledger_position: int
    left_amount: str
    expire_time: _timestamp_pb2.Timestamp
    def __init__(self, ledger_position: _Optional[int] = ..., left_amount: _Optional[str] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ReserveBudgetRequest(_message.Message):
    __slots__ = ("request_id", "tenant_id", "project_id", "key_id", "model", "prompt_tokens", "completion_tokens", "service_class", "ttl_class", "deadline_time")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    PROJECT_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SERVICE_CLASS_FIELD_NUMBER: _ClassVar[int]
    TTL_CLASS_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_TIME_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    tenant_id: str
    project_id: str
    key_id: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    service_class: str
    ttl_class: str
    deadline_time: _timestamp_pb2.Timestamp
    def __init__(self, request_id: _Optional[str] = ..., tenant_id: _Optional[str] = ..., project_id: _Optional[str] = ..., key_id: _Optional[str] = ..., model: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., service_class: _Optional[str] = ..., ttl_class: _Optional[str] = ..., deadline_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ReserveBudgetResponse(_message.Message):
    __slots__ = ("amount", "currency_code", "expire_time", "already_there")
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    CURRENCY_CODE_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    ALREADY_THERE_FIELD_NUMBER: _ClassVar[int]
    amount: str
    currency_code: str
    expire_time: _timestamp_pb2.Timestamp
    already_there: bool
    def __init__(self, amount: _Optional[str] = ..., currency_code: _Optional[str] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., already_there: bool = ...) -> None: ...

class ReleaseBudgetRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class ReleaseBudgetResponse(_message.Message):
    __slots__ = ("released",)
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    released: bool
    def __init__(self, released: bool = ...) -> None: ...

class Budget(_message.Message):
    __slots__ = ("tenant_id", "project_id", "key_id", "balance_required", "limit", "alert_percents", "requests_per_minute", "tokens_per_minute", "tokens_per_day")
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    PROJECT_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    BALANCE_REQUIRED_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    ALERT_PERCENTS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_DAY_FIELD_NUMBER: _ClassVar[int]
    tenant_id: str
    project_id: str
    key_id: str
    balance_required: bool
    limit: SpendLimit
    alert_percents: _containers.RepeatedScalarFieldContainer[int]
    requests_per_minute: int
    tokens_per_minute: int
    tokens_per_day: int
    def __init__(self, tenant_id: _Optional[str] = ..., project_id: _Optional[str] = ..., key_id: _Optional[str] = ..., balance_required: bool = ..., limit: _Optional[_Union[SpendLimit, _Mapping]] = ..., alert_percents: _Optional[_Iterable[int]] = ..., requests_per_minute: _Optional[int] = ..., tokens_per_minute: _Optional[int] = ..., tokens_per_day: _Optional[int] = ...) -> None: ...

class SpendLimit(_message.Message):
    __slots__ = ("amount", "currency_code", "period", "time_zone", "soft")
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    CURRENCY_CODE_FIELD_NUMBER: _ClassVar[int]
    PERIOD_FIELD_NUMBER: _ClassVar[int]
    TIME_ZONE_FIELD_NUMBER: _ClassVar[int]
    SOFT_FIELD_NUMBER: _ClassVar[int]
    amount: str
    currency_code: str
    period: BudgetPeriod
    time_zone: str
    soft: bool
    def __init__(self, amount: _Optional[str] = ..., currency_code: _Optional[str] = ..., period: _Optional[_Union[BudgetPeriod, str]] = ..., time_zone: _Optional[str] = ..., soft: bool = ...) -> None: ...

class SetBudgetRequest(_message.Message):
    __slots__ = ("budget_id", "budget", "reason", "operator")
    BUDGET_ID_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    budget_id: str
    budget: Budget
    reason: str
    operator: str
    def __init__(self, budget_id: _Optional[str] = ..., budget: _Optional[_Union[Budget, _Mapping]] = ..., reason: _Optional[str] = ..., operator: _Optional[str] = ...) -> None: ...

class SetBudgetResponse(_message.Message):
    __slots__ = ("ledger_position", "create_time", "already_there")
    LEDGER_POSITION_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    ALREADY_THERE_FIELD_NUMBER: _ClassVar[int]
    ledger_position: int
    create_time: _timestamp_pb2.Timestamp
    already_there: bool
    def __init__(self, ledger_position: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., already_there: bool = ...) -> None: ...

class ListBudgetsRequest(_message.Message):
    __slots__ = ("tenant_id", "project_id")
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    PROJECT_ID_FIELD_NUMBER: _ClassVar[int]
    tenant_id: str
    project_id: str
    def __init__(self, tenant_id: _Optional[str] = ..., project_id: _Optional[str] = ...) -> None: ...

class ListBudgetsResponse(_message.Message):
    __slots__ = ("budgets", "omitted_count")
    BUDGETS_FIELD_NUMBER: _ClassVar[int]
    OMITTED_COUNT_FIELD_NUMBER: _ClassVar[int]
    budgets: _containers.RepeatedCompositeFieldContainer[BudgetStatus]
    omitted_count: int
    def __init__(self, budgets: _Optional[_Iterable[_Union[BudgetStatus, _Mapping]]] = ..., omitted_count: _Optional[int] = ...) -> None: ...

class BudgetStatus(_message.Message):
    __slots__ = ("budget", "ledger_position", "spent_amount", "held_amount", "period_start_time", "period_end_time", "held_request_count")
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    LEDGER_POSITION_FIELD_NUMBER: _ClassVar[int]
    SPENT_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    HELD_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    PERIOD_START_TIME_FIELD_NUMBER: _ClassVar[int]
    PERIOD_END_TIME_FIELD_NUMBER: _ClassVar[int]
    HELD_REQUEST_COUNT_FIELD_NUMBER: _ClassVar[int]
    budget: Budget
    ledger_position: int
    spent_amount: str
    held_amount: str
    period_start_time: _timestamp_pb2.Timestamp
    period_end_time: _timestamp_pb2.Timestamp
    held_request_count: int
    def __init__(self, budget: _Optional[_Union[Budget, _Mapping]] = ..., ledger_position: _Optional[int] = ..., spent_amount: _Optional[str] = ..., held_amount: _Optional[str] = ..., period_start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., period_end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., held_request_count: _Optional[int] = ...) -> None: ...

class ListBudgetAlertsRequest(_message.Message):
    __slots__ = ("tenant_id", "project_id", "start_time", "end_time")
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    PROJECT_ID_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    tenant_id: str
    project_id: str
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    def __init__(self, tenant_id: _Optional[str] = ..., project_id: _Optional[str] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ListBudgetAlertsResponse(_message.Message):
    __slots__ = ("alerts",)
    ALERTS_FIELD_NUMBER: _ClassVar[int]
    alerts: _containers.RepeatedCompositeFieldContainer[BudgetAlert]
    def __init__(self, alerts: _Optional[_Iterable[_Union[BudgetAlert, _Mapping]]] = ...) -> None: ...

class BudgetAlert(_message.Message):
    __slots__ = ("kind", "tenant_id", "project_id", "key_id", "percent", "amount", "limit_amount", "currency_code", "create_time")
    KIND_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    PROJECT_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    PERCENT_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    LIMIT_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    CURRENCY_CODE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    kind: BudgetAlertKind
    tenant_id: str
    project_id: str
    key_id: str
    percent: int
    amount: str
    limit_amount: str
    currency_code: str
    create_time: _timestamp_pb2.Timestamp
    def __init__(self, kind: _Optional[_Union[BudgetAlertKind, str]] = ..., tenant_id: _Optional[str] = ..., project_id: _Optional[str] = ..., key_id: _Optional[str] = ..., percent: _Optional[int] = ..., amount: _Optional[str] = ..., limit_amount: _Optional[str] = ..., currency_code: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...
