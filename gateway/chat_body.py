"""The body of `/v1/chat/completions` -> `GenerateRequest`. Pure, any thread."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from gateway.body_fields import (
    OBJECTS_MAX,
    Body,
    Count,
    Strict,
    fill,
    parse,
    refuse_in,
    refuse_what_is_not_here,
)
from gateway.errors import InvalidBodyError, UnsupportedError
from kvtier.v1 import inference_pb2 as pb

__all__ = ["ChatBody", "chat_request", "read_chat"]

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""`developer` is OpenAI's newer word for `system`."""

_OTHER_ROLES = ("tool", "function")

_NOTHING: Mapping[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "thinking": ({"type": "disabled"},),
    "verbosity": (),
    "web_search_options": (),
    "store": (False,),
    "metadata": ({},),
    "safety_identifier": (),
    "prompt_cache_retention": (),
    "moderation": (),
}
"""What is not to be had, and the values beside null with which a client asks for nothing."""

_NOTHING_OF_A_MESSAGE: Mapping[str, tuple[Any, ...]] = {
    "name": (),
    "tool_calls": ([],),
    "tool_call_id": (),
    "function_call": (),
    "refusal": (),
    "audio": (),
    "annotations": ([],),
    "prefix": (False,),
}


class Part(Strict):
    type: str
    text: str | None = None
    image_url: Any = None
    input_audio: Any = None
    file: Any = None
    refusal: Any = None


class Message(Strict):
    role: str
    content: str | Annotated[list[Part], Field(max_length=OBJECTS_MAX, fail_fast=True)] | None = (
        None
    )
    name: Any = None
    tool_calls: Any = None
    tool_call_id: Any = None
    function_call: Any = None
    refusal: Any = None
    audio: Any = None
    annotations: Any = None
    prefix: Any = None


class ChatBody(Body):
    messages: Annotated[list[Message], Field(min_length=1, max_length=OBJECTS_MAX, fail_fast=True)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """The worker knows it by another's name."""
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    parallel_tool_calls: Any = None
    response_format: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    reasoning_effort: Any = None
    thinking: Any = None
    verbosity: Any = None
    web_search_options: Any = None
    store: Any = None
    metadata: Any = None
    safety_identifier: Any = None
    prompt_cache_retention: Any = None
    moderation: Any = None


def read_chat(raw: bytes) -> ChatBody:
    """Raises InvalidBodyError, UnsupportedError."""
    body = parse(ChatBody, raw)
    refuse_what_is_not_here(body, _NOTHING)
    return body


def chat_request(body: ChatBody) -> pb.GenerateRequest:
    """Without who asks. Raises InvalidBodyError, UnsupportedError."""
    request = pb.GenerateRequest()
    fill(request, body)
    if body.max_completion_tokens is not None:
        if body.max_tokens not in (None, body.max_completion_tokens):
            raise InvalidBodyError(
                "max_tokens and max_completion_tokens differ; send one of them", "max_tokens"
            )
        request.max_completion_tokens = body.max_completion_tokens
    if body.logprobs:
        request.logprobs = body.top_logprobs or 0
    elif body.top_logprobs:
        raise InvalidBodyError("top_logprobs goes with logprobs: true", "top_logprobs")
    for index, message in enumerate(body.messages):
        where = f"messages.{index}."
        role = _role(message.role, where)
        refuse_in(message, _NOTHING_OF_A_MESSAGE, where)
        request.chat.messages.add(role=role, content=_content(message, where))
    return request


def _role(role: str, where: str) -> str:
    if role in _OTHER_ROLES:
        raise UnsupportedError(f"messages of role {role} are not supported here", f"{where}role")
    if role not in _ROLES:
        raise InvalidBodyError(f"{where}role is one of {', '.join(_ROLES)}", f"{where}role")
    return _ROLES[role]


def _content(message: Message, where: str) -> str:
    if message.content is None:
        raise InvalidBodyError(f"{where}content is missing", f"{where}content")
    if isinstance(message.content, str):
        return message.content
    texts = []
    for index, part in enumerate(message.content):
        at = f"{where}content.{index}"
        if part.type != "text":
            raise UnsupportedError("only parts of type text are supported here", f"{at}.type")
        if part.text is None:
            raise InvalidBodyError(f"{at}.text is missing", f"{at}.text")
        texts.append(part.text)
    return "".join(texts)
