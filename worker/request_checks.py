"""Whether a request makes sense, decided before anything is spent on it.

    Ask (what the client said)  ->  check_ask  ->  encode (executor)  ->  check_prompt  ->  submit

Invariant: what passes here is within every limit the engine and the journal rely on. Pure
functions; each refusal is one of `worker.errors` with a reason. Any thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from worker.attribution import Attribution, check_attribution
from worker.cache_control import CacheControl, check_cache_control
from worker.chat import ChatMessage, PromptEncoder, check_roles
from worker.errors import (
    AdapterUnknownError,
    InvalidLimitError,
    ModelUnknownError,
    PromptEmptyError,
    PromptTooLongError,
    TokenIdOutOfRangeError,
)
from worker.sampling import Sampling, check_sampling
from worker.tenants import PRIORITY_MAX, PRIORITY_MIN, Caller

__all__ = [
    "Ask",
    "ChatPrompt",
    "ModelLimits",
    "Prompt",
    "TextPrompt",
    "TokenPrompt",
    "adapter_of",
    "check_ask",
    "completion_limit",
    "encode",
]

SAMPLES_MAX = 16
STOPS_MAX = 8
STOP_CHARACTERS_MAX = 1024
CLIENT_REQUEST_ID_CHARACTERS_MAX = 128
STOP_TOKENS_MAX = 64


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    messages: tuple[ChatMessage, ...]


@dataclass(frozen=True, slots=True)
class TextPrompt:
    text: str


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    token_ids: tuple[int, ...]


Prompt = ChatPrompt | TextPrompt | TokenPrompt


@dataclass(frozen=True, slots=True)
class Ask:
    """A request as the client sent it; nothing is checked yet."""

    caller: Caller
    model: str
    prompt: Prompt | None
    max_completion_tokens: int = 0
    """Per sample; 0: the worker's default."""
    sampling: Sampling = field(default_factory=Sampling)
    sample_count: int = 0
    """0 means 1."""
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    cache: CacheControl = field(default_factory=CacheControl)
    client_request_id: str = ""
    ignore_end_of_sequence: bool = False
    priority: int | None = None
    """None: what the tenant has by itself."""
    adapter: str = ""
    """Empty: what `model` says."""
    attribution: Attribution = field(default_factory=Attribution)


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What the served model can take."""

    model: str
    context_tokens: int
    """Prompt and one sample's completion together."""
    vocabulary_size: int
    default_completion_tokens: int
    adapters: frozenset[str] = frozenset()
    """Those that requests may name."""

    def full_name(self, adapter: str) -> str:
        """Of the model with an adapter, or with none: as replies and usage events call it."""
        return f"{self.model}:{adapter}" if adapter else self.model


def adapter_of(ask: Ask, limits: ModelLimits) -> str:
    """The adapter that is asked for, by `adapter` or by a model called MODEL:ADAPTER; empty: none.

    Raises ModelUnknownError, AdapterUnknownError.
    """
    asked = ask.adapter
    if ask.model not in ("", limits.model):
        base, _, named = ask.model.rpartition(":")
        if base != limits.model or asked not in ("", named):
            raise ModelUnknownError(
                f"this worker serves {limits.model}; leave `model` empty or ask for that",
                serves=limits.model,
            )
        asked = named
    if asked and asked not in limits.adapters:
        there = ", ".join(sorted(limits.adapters)) or "none"
        raise AdapterUnknownError(
            f"{limits.model} has no adapter {asked} here; it has {there}", serves=limits.model
        )
    return asked


def check_ask(ask: Ask, limits: ModelLimits, encoder: PromptEncoder) -> None:
    """All that can be told without tokenizing."""
    adapter_of(ask, limits)
    _check_limits(ask)
    _check_stops(ask, limits.vocabulary_size)
    check_sampling(ask.sampling, ask.sample_count)
    check_cache_control(ask.cache)
    check_attribution(ask.attribution)
    match ask.prompt:
        case None:
            raise PromptEmptyError("the request has no prompt; set chat, text or tokens")
        case TextPrompt(text):
            _check_length(text, limits, encoder)
        case ChatPrompt(messages):
            check_roles(messages)
            _check_message_count(len(messages), limits)
            _check_length("".join(m.content for m in messages), limits, encoder)
        case TokenPrompt(token_ids):
            _check_token_ids(token_ids, limits.vocabulary_size)


def encode(prompt: Prompt, encoder: PromptEncoder, limits: ModelLimits) -> tuple[int, ...]:
    """Tokens of a prompt that passed `check_ask`. Slow for long text: not on the event loop.

    Raises PromptEmptyError, InvalidMessagesError, and TokenIdOutOfRangeError when the tokenizer
    knows tokens that the model does not.
    """
    match prompt:
        case TextPrompt(text):
            token_ids = encoder.text_tokens(text) if text else ()
        case ChatPrompt(messages):
            token_ids = encoder.chat_tokens(messages)
        case TokenPrompt(token_ids):
            return token_ids
    _check_token_ids(token_ids, limits.vocabulary_size)
    return token_ids


def completion_limit(ask: Ask, prompt_tokens: int, limits: ModelLimits) -> int:
    """Tokens to generate per sample. Raises PromptEmptyError, PromptTooLongError."""
    if prompt_tokens == 0:
        raise PromptEmptyError("the prompt has no token to compute; send at least one")
    room = limits.context_tokens - prompt_tokens
    wanted = ask.max_completion_tokens or max(1, min(limits.default_completion_tokens, room))
    if wanted > room:
        raise PromptTooLongError(
            f"{prompt_tokens} prompt tokens and {wanted} completion tokens pass the model's"
            f" context of {limits.context_tokens}; shorten the prompt or ask for fewer",
            prompt_tokens=prompt_tokens,
            completion_tokens=wanted,
            context_tokens=limits.context_tokens,
        )
    return wanted


def _check_limits(ask: Ask) -> None:
    if ask.max_completion_tokens < 0:
        raise InvalidLimitError(
            "max_completion_tokens must be 1 or more, or 0 for the default",
            field="max_completion_tokens",
        )
    if not 0 <= ask.sample_count <= SAMPLES_MAX:
        raise InvalidLimitError(f"sample_count must be 1 to {SAMPLES_MAX}", field="sample_count")
    if ask.priority is not None and not PRIORITY_MIN <= ask.priority <= PRIORITY_MAX:
        raise InvalidLimitError(
            f"priority must be {PRIORITY_MIN} to {PRIORITY_MAX}", field="priority"
        )
    if len(ask.client_request_id) > CLIENT_REQUEST_ID_CHARACTERS_MAX:
        raise InvalidLimitError(
            f"client_request_id may have {CLIENT_REQUEST_ID_CHARACTERS_MAX} characters,"
            f" not {len(ask.client_request_id)}",
            field="client_request_id",
        )


def _check_stops(ask: Ask, vocabulary_size: int) -> None:
    if len(ask.stop) > STOPS_MAX:
        raise InvalidLimitError(f"{len(ask.stop)} stop strings; at most {STOPS_MAX}", field="stop")
    if any(not 0 < len(stop) <= STOP_CHARACTERS_MAX for stop in ask.stop):
        raise InvalidLimitError(
            f"a stop string must have 1 to {STOP_CHARACTERS_MAX} characters", field="stop"
        )
    if len(ask.stop_token_ids) > STOP_TOKENS_MAX:
        raise InvalidLimitError(
            f"{len(ask.stop_token_ids)} stop tokens; at most {STOP_TOKENS_MAX}",
            field="stop_token_ids",
        )
    _check_vocabulary(ask.stop_token_ids, vocabulary_size, "stop_token_ids", "stop token")


def _check_message_count(count: int, limits: ModelLimits) -> None:
    """Each message is a token at least: more cannot fit, whatever a template makes of them."""
    if count > limits.context_tokens:
        raise PromptTooLongError(
            f"{count} messages cannot fit the model's context of {limits.context_tokens} tokens;"
            " shorten the chat",
            context_tokens=limits.context_tokens,
        )


def _check_length(text: str, limits: ModelLimits, encoder: PromptEncoder) -> None:
    """Refuses what cannot fit whatever its tokens are, before a tokenizer reads megabytes."""
    if encoder.least_tokens(text) > limits.context_tokens:
        raise PromptTooLongError(
            f"{len(text)} characters cannot fit the model's context of"
            f" {limits.context_tokens} tokens; shorten the prompt",
            context_tokens=limits.context_tokens,
        )


def _check_token_ids(token_ids: Sequence[int], vocabulary_size: int) -> None:
    if not token_ids:
        raise PromptEmptyError("the prompt has no token to compute; send at least one")
    _check_vocabulary(token_ids, vocabulary_size, "prompt", "token")


def _check_vocabulary(
    token_ids: Sequence[int], vocabulary_size: int, field_name: str, called: str
) -> None:
    if not token_ids or (min(token_ids) >= 0 and max(token_ids) < vocabulary_size):
        return
    index = next(i for i, t in enumerate(token_ids) if not 0 <= t < vocabulary_size)
    raise TokenIdOutOfRangeError(
        f"{called} {index} is not in the model's vocabulary; send ids from 0 to"
        f" {vocabulary_size - 1}",
        field=field_name,
        token_index=index,
        vocabulary_size=vocabulary_size,
    )
