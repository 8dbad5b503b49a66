"""The body of `/v1/completions` -> `GenerateRequest`. Pure, any thread."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from gateway.body_fields import Body, Int32, fill, parse, refuse_what_is_not_here
from gateway.errors import InvalidBodyError, UnsupportedError
from kvtier.v1 import inference_pb2 as pb

__all__ = ["CompletionBody", "completion_request", "read_completion"]

_NOTHING: Mapping[str, tuple[Any, ...]] = {
    "echo": (False,),
    "suffix": ("",),
    "logit_bias": ({},),
}


TOKENS_MAX = 1 << 20
"""Of a prompt; a model's context is shorter, and its worker says how long."""


class CompletionBody(Body):
    prompt: str | Annotated[list[Any], Field(max_length=TOKENS_MAX)]
    logprobs: Int32 | None = None
    best_of: Int32 | None = None
    echo: Any = None
    suffix: Any = None


def read_completion(raw: bytes) -> CompletionBody:
    """Raises InvalidBodyError, UnsupportedError."""
    body = parse(CompletionBody, raw)
    refuse_what_is_not_here(body, _NOTHING)
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise UnsupportedError("best_of is not supported here; ask for n", "best_of")
    return body


def completion_request(body: CompletionBody) -> pb.GenerateRequest:
    """Without who asks. Raises InvalidBodyError, UnsupportedError."""
    request = pb.GenerateRequest()
    fill(request, body)
    if body.logprobs is not None:
        request.logprobs = body.logprobs
    _fill_prompt(request, body.prompt)
    return request


def _fill_prompt(request: pb.GenerateRequest, prompt: str | list[Any]) -> None:
    """A text or the ids of its tokens, perhaps as the one entry of a list."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        if len(prompt) > 1:
            raise UnsupportedError(
                "several prompts in one request are not supported here; send a request for each",
                "prompt",
            )
        prompt = prompt[0]
    if isinstance(prompt, str):
        request.text = prompt
        return
    if len(prompt) > TOKENS_MAX:
        raise InvalidBodyError(f"prompt has more than {TOKENS_MAX} token ids", "prompt")
    if not all(type(each) is int and 0 <= each < 2**31 for each in prompt):
        raise InvalidBodyError("prompt is a text or a list of token ids", "prompt")
    request.tokens.token_ids.extend(prompt)
