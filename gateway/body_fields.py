"""What bodies of both inference paths have in common, and how a wrong one is told.

A body is read once, strictly: a number is no text, an unknown name is refused. What is known and
not to be had here (tools, images, ...) passes where it says nothing and is refused by name where it
asks for something; nothing that would change an answer is left out in silence. Ranges are the
worker's to judge, which names the field: `PARAMETERS` has its words for ours. Invariant: reading
ends at the first wrong entry of a list and at `OBJECTS_MAX`, so that no body costs much more than a
good one of its size. Pure, any thread.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Self, TypeVar

from google.protobuf.duration_pb2 import Duration
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

from gateway.errors import InvalidBodyError, UnsupportedError
from kvtier.v1 import inference_pb2 as pb

__all__ = ["PARAMETERS", "Body", "StreamOptions", "fill", "parse", "refuse_what_is_not_here"]

Int32 = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]
Int64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]

OBJECTS_MAX = 16_384
"""Messages and their parts together; a body of the smallest would have half a million."""
STOPS_MAX = 64
STOP_TOKENS_MAX = 1024
"""Of both a worker takes fewer, and says how many."""

PARAMETERS: Mapping[str, str] = {
    "sampling.temperature": "temperature",
    "sampling.top_p": "top_p",
    "sampling.top_k": "top_k",
    "sampling.min_p": "min_p",
    "sampling.presence_penalty": "presence_penalty",
    "sampling.frequency_penalty": "frequency_penalty",
    "sample_count": "n",
    "max_completion_tokens": "max_tokens",
    "stop_token_ids": "kvtier.stop_token_ids",
    "priority": "kvtier.priority",
    "cache_mode": "kvtier.cache_mode",
    "cache_scope": "kvtier.cache_scope",
    "cache_timeout": "kvtier.cache_timeout_seconds",
    "one_off": "kvtier.one_off",
    "ttl_class": "kvtier.ttl_class",
    "client_request_id": "X-Client-Request-Id",
    "session_id": "prompt_cache_key",
}
"""The worker's names of fields -> those of a body, where they differ."""


class Objects:
    """Counts a body's objects while it is read."""

    def __init__(self) -> None:
        self.count = 0


class Strict(BaseModel):
    """An object of a body. What it does not know is refused by its first name: `forbid` would make
    an error of each."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _bounded(self, info: ValidationInfo) -> Self:
        extra = self.__pydantic_extra__
        if extra:
            raise PydanticCustomError("extra_forbidden", "unknown", {"name": next(iter(extra))})
        if isinstance(info.context, Objects):
            info.context.count += 1
            if info.context.count > OBJECTS_MAX:
                raise PydanticCustomError("too_many_objects", "must have fewer messages and parts")
        return self


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class CacheWords(Strict):
    """What `kvtier.v1` says beyond the field's common words."""

    cache_mode: str | None = None
    cache_scope: str | None = None
    cache_timeout_seconds: Annotated[float, Field(ge=0, le=3600)] | None = None
    one_off: bool | None = None
    ttl_class: str | None = None
    priority: Int32 | None = None
    stop_token_ids: (
        Annotated[list[Int32], Field(max_length=STOP_TOKENS_MAX, fail_fast=True)] | None
    ) = None
    ignore_end_of_sequence: bool | None = None


class Body(Strict):
    """Base of both paths' bodies."""

    model: str = Field(min_length=1)
    max_tokens: Count | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int32 | None = None
    min_p: float | None = None
    n: Count | None = None
    stop: str | Annotated[list[str], Field(max_length=STOPS_MAX, fail_fast=True)] | None = None
    seed: Int64 | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    user_id: str | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None
    kvtier: CacheWords | None = None
    logit_bias: Any = None

    @property
    def streams(self) -> bool:
        return bool(self.stream)

    @property
    def tells_usage(self) -> bool:
        """At the end of a stream; a whole answer always does."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def user_said(self) -> tuple[str | None, str]:
        """The user, and the parameter that names it. Raises InvalidBodyError."""
        if self.user and self.user_id and self.user != self.user_id:
            raise InvalidBodyError("user and user_id differ; send one of them", "user_id")
        return (self.user, "user") if self.user else (self.user_id, "user_id")


AnyBody = TypeVar("AnyBody", bound=Body)

_CACHE_MODES = {
    "default": pb.CACHE_MODE_UNSPECIFIED,
    "read_only": pb.CACHE_MODE_READ_ONLY,
    "bypass": pb.CACHE_MODE_BYPASS,
}
CACHE_SCOPES = {
    "organisation": pb.CACHE_SCOPE_ORGANISATION,
    "project": pb.CACHE_SCOPE_PROJECT,
    "user": pb.CACHE_SCOPE_USER,
}


def parse(model: type[AnyBody], raw: bytes) -> AnyBody:
    """Raises InvalidBodyError for the first thing that is wrong."""
    try:
        return model.model_validate_json(raw, context=Objects())
    except ValidationError as error:
        problem = _first(error.errors(include_url=False, include_input=False))
        location = problem["loc"]
        if problem["type"] == "extra_forbidden":
            location = (*location, problem["ctx"]["name"])
        raise _explained(problem["type"], location, problem["msg"]) from None


def refuse_what_is_not_here(
    body: Body, nothing: Mapping[str, tuple[Any, ...]], where: str = ""
) -> None:
    """`nothing`: parameters, and the values with which each asks for nothing beside null.

    Raises UnsupportedError.
    """
    _refuse(body, nothing, where)
    options = body.stream_options
    if options is not None and not body.streams:
        raise InvalidBodyError("stream_options goes with stream: true", "stream_options")
    if options is not None and options.include_obfuscation:
        raise _unsupported("stream_options.include_obfuscation")


def fill(request: pb.GenerateRequest, body: Body) -> None:
    """Puts in what both paths say alike. Unsaid, a temperature is 1, as such clients expect.

    Raises InvalidBodyError.
    """
    request.model = body.model
    request.max_completion_tokens = body.max_tokens or 0
    request.sample_count = body.n or 1
    request.stop.extend([body.stop] if isinstance(body.stop, str) else body.stop or ())
    request.session_id = body.prompt_cache_key or ""
    sampling = request.sampling
    sampling.temperature = 1.0 if body.temperature is None else body.temperature
    if body.top_p is not None:
        if not 0 < body.top_p <= 1:  # to the worker 0 would be unset
            raise InvalidBodyError("top_p must be above 0 and at most 1", "top_p")
        sampling.top_p = body.top_p
    sampling.top_k = body.top_k or 0
    sampling.min_p = body.min_p or 0.0
    sampling.presence_penalty = body.presence_penalty or 0.0
    sampling.frequency_penalty = body.frequency_penalty or 0.0
    if body.seed is not None:
        sampling.seed = body.seed
    if body.kvtier is not None:
        _fill_cache_words(request, body.kvtier)


def _fill_cache_words(request: pb.GenerateRequest, words: CacheWords) -> None:
    request.cache_mode = _chosen(_CACHE_MODES, words.cache_mode or "default", "kvtier.cache_mode")
    if words.cache_scope is not None:
        request.cache_scope = _chosen(CACHE_SCOPES, words.cache_scope, "kvtier.cache_scope")
    if words.cache_timeout_seconds is not None:
        timeout = Duration()
        timeout.FromNanoseconds(round(words.cache_timeout_seconds * 1e9))
        request.cache_timeout.CopyFrom(timeout)
    request.one_off = bool(words.one_off)
    request.ttl_class = words.ttl_class or ""
    if words.priority is not None:
        request.priority = words.priority
    request.stop_token_ids.extend(words.stop_token_ids or ())
    request.ignore_end_of_sequence = bool(words.ignore_end_of_sequence)


def _chosen(choices: Mapping[str, Any], text: str, parameter: str) -> Any:
    if text not in choices:
        raise InvalidBodyError(f"{parameter} is one of {', '.join(choices)}", parameter)
    return choices[text]


def _refuse(said: BaseModel, nothing: Mapping[str, tuple[Any, ...]], where: str) -> None:
    for name, values in nothing.items():
        value = getattr(said, name)
        if value is not None and value not in values:
            raise _unsupported(f"{where}{name}")


def _unsupported(parameter: str) -> UnsupportedError:
    return UnsupportedError(
        f"{parameter} is not supported here with this value; leave it out", parameter
    )


refuse_in = _refuse
"""The same of a part of a body, without its options."""


def _first(problems: list[Any]) -> Any:
    """Of what may be a text or a list the list's, where a list was said."""
    first = problems[0]
    *where, kind = first["loc"] or ("",)
    if kind != "str":
        return first
    others = (each for each in problems if each["loc"][: len(where)] == tuple(where))
    return next((each for each in others if each["type"] not in _NO_LIST), first)


_NO_LIST = ("string_type", "list_type")

_WORDS = {
    "missing": "is missing",
    "extra_forbidden": "is not a parameter of this path",
    "string_type": "must be a text",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "model_type": "must be an object",
    "finite_number": "must be a finite number",
    "too_long": "has more entries than are taken here",
}
"""For what pydantic says in words of its own world."""


def _explained(kind: str, location: tuple[int | str, ...], said: str) -> InvalidBodyError:
    if kind == "json_invalid":
        return InvalidBodyError(f"the body is not JSON: {said.removeprefix('Invalid JSON: ')}")
    parameter = _parameter(location)
    if not parameter:
        return InvalidBodyError("the body must be a JSON object")
    if kind == "extra_forbidden":
        parts = [str(part) for part in location if "[" not in str(part)]
        parameter = ".".join([*parts[:-1], str(location[-1])])[:128]
    words = _WORDS.get(kind, said[:1].lower() + said[1:])
    return InvalidBodyError(f"{parameter} {words}", parameter)


def _parameter(location: tuple[int | str, ...]) -> str:
    """Without what pydantic adds to say which type of several it tried."""
    parts = []
    for part in location:
        if isinstance(part, str) and not part.isidentifier():
            break
        if isinstance(part, str) and part in ("str", "int", "list", "Part"):
            break
        parts.append(str(part))
    return ".".join(parts)
