from kvtier.v1 import inference_pb2 as _inference_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DescribePromptRequest(_message.Message):
    __slots__ = ("tenant_id", "model", "chat", "text", "tokens", "cache_scope", "project_id", "user_id", "other_scopes", "adapter", "names_only")
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHE_SCOPE_FIELD_NUMBER: _ClassVar[int]
    PROJECT_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    OTHER_SCOPES_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    NAMES_ONLY_FIELD_NUMBER: _ClassVar[int]
    tenant_id: str
    model: str
    chat: _inference_pb2.ChatPrompt
    text: str
    tokens: _inference_pb2.TokenPrompt
    cache_scope: _inference_pb2.CacheScope
    project_id: str
    user_id: str
    other_scopes: bool
    adapter: str
    names_only: bool
    def __init__(self, tenant_id: _Optional[str] = ..., model: _Optional[str] = ..., chat: _Optional[_Union[_inference_pb2.ChatPrompt, _Mapping]] = ..., text: _Optional[str] = ..., tokens: _Optional[_Union[_inference_pb2.TokenPrompt, _Mapping]] = ..., cache_scope: _Optional[_Union[_inference_pb2.CacheScope, str]] = ..., project_id: _Optional[str] = ..., user_id: _Optional[str] = ..., other_scopes: bool = ..., adapter: _Optional[str] = ..., names_only: bool = ...) -> None: ...

class DescribePromptResponse(_message.Message):
    __slots__ = ("model", "namespace_id", "block_bytes", "block_tokens", "prompt_tokens", "block_hashes", "resident_count", "whole_units", "other_scopes")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_ID_FIELD_NUMBER: _ClassVar[int]
    BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    BLOCK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_HASHES_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_COUNT_FIELD_NUMBER: _ClassVar[int]
    WHOLE_UNITS_FIELD_NUMBER: _ClassVar[int]
    OTHER_SCOPES_FIELD_NUMBER: _ClassVar[int]
    model: str
    namespace_id: bytes
    block_bytes: int
    block_tokens: int
    prompt_tokens: int
    block_hashes: bytes
    resident_count: int
    whole_units: bool
    other_scopes: _containers.RepeatedCompositeFieldContainer[ScopedChain]
    def __init__(self, model: _Optional[str] = ..., namespace_id: _Optional[bytes] = ..., block_bytes: _Optional[int] = ..., block_tokens: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., block_hashes: _Optional[bytes] = ..., resident_count: _Optional[int] = ..., whole_units: bool = ..., other_scopes: _Optional[_Iterable[_Union[ScopedChain, _Mapping]]] = ...) -> None: ...

class ScopedChain(_message.Message):
    __slots__ = ("runs", "block_hashes")
    RUNS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_HASHES_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[ScopeRun]
    block_hashes: bytes
    def __init__(self, runs: _Optional[_Iterable[_Union[ScopeRun, _Mapping]]] = ..., block_hashes: _Optional[bytes] = ...) -> None: ...

class ScopeRun(_message.Message):
    __slots__ = ("scope_path", "block_count")
    SCOPE_PATH_FIELD_NUMBER: _ClassVar[int]
    BLOCK_COUNT_FIELD_NUMBER: _ClassVar[int]
    scope_path: str
    block_count: int
    def __init__(self, scope_path: _Optional[str] = ..., block_count: _Optional[int] = ...) -> None: ...
