"""The `openai` package, unmodified, before the whole stack: what people's programs do works."""

import asyncio
from typing import Any

import openai
import pytest

from kvtier.v1 import usage_pb2
from tests.contract.gateway_edge.conftest import MODEL, Stack

HELLO: list[Any] = [{"role": "user", "content": "say something about the sea"}]
LONG: list[Any] = [
    {"role": "system", "content": "You know a lot about the sea. " * 60},
    {"role": "user", "content": "Tell me."},
]


def test_a_chat_is_answered_and_its_usage_is_the_ledgers(
    stack: Stack, client: openai.OpenAI
) -> None:
    reply = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=6, seed=1)
    assert reply.object == "chat.completion"
    assert reply.model == MODEL
    (choice,) = reply.choices
    assert (choice.index, choice.finish_reason, choice.message.role) == (0, "length", "assistant")
    assert choice.message.content
    usage: Any = reply.usage
    assert usage.prompt_cache_hit_tokens + usage.prompt_cache_miss_tokens == usage.prompt_tokens
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_cache_hit_tokens
    assert usage.total_tokens == usage.prompt_tokens + 6
    event = stack.event_of(reply.id)
    assert event.tokens.prompt_tokens == usage.prompt_tokens
    assert event.tokens.hit_tokens == usage.prompt_cache_hit_tokens
    assert event.tokens.completion_tokens == usage.completion_tokens == 6
    assert (event.tenant_id, event.project_id) == ("acme", "search")


def test_the_second_asking_hits_and_says_so_in_both_shapes(client: openai.OpenAI) -> None:
    first, second = (
        client.chat.completions.create(model=MODEL, messages=LONG, max_tokens=1) for _ in range(2)
    )
    usage: Any = second.usage
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_cache_hit_tokens > 0
    assert usage.prompt_cache_hit_tokens % 64 == 0
    assert usage.prompt_tokens == first.usage.prompt_tokens  # type: ignore[union-attr]


def test_a_stream_says_what_a_whole_answer_says(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": HELLO, "max_tokens": 8, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    with client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert len({chunk.id for chunk in chunks}) == 1
    said = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert said[0].delta.role == "assistant"
    text = "".join(each.delta.content or "" for each in said)
    assert text == whole.choices[0].message.content
    assert [each.finish_reason for each in said if each.finish_reason] == ["length"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len(said) > 2, "tokens come as they are made"


def test_a_stream_without_the_option_tells_no_usage(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=2, stream=True
    ) as stream:
        assert all(chunk.choices and chunk.usage is None for chunk in stream)


@pytest.mark.parametrize("stream", [False, True])
def test_four_samples_are_four_choices_and_one_prompt(
    stack: Stack, client: openai.OpenAI, stream: bool
) -> None:
    asked: dict[str, Any] = {
        "model": MODEL, "messages": HELLO, "max_tokens": 5, "n": 4, "seed": 3,
    }  # fmt: skip
    texts, ends = [""] * 4, [""] * 4
    if stream:
        options: dict[str, Any] = {"stream_options": {"include_usage": True}}
        with client.chat.completions.create(**asked, **options, stream=True) as chunks:
            for chunk in chunks:
                for choice in chunk.choices:
                    texts[choice.index] += choice.delta.content or ""
                    ends[choice.index] = choice.finish_reason or ends[choice.index]
                usage: Any = chunk.usage
                name = chunk.id
    else:
        reply = client.chat.completions.create(**asked)
        assert [each.index for each in reply.choices] == [0, 1, 2, 3]
        texts = [each.message.content or "" for each in reply.choices]
        ends = [each.finish_reason for each in reply.choices]
        usage, name = reply.usage, reply.id
    assert set(ends) <= {"length", "stop"}
    assert len(set(texts)) > 1
    tokens = stack.event_of(name).tokens
    assert tokens.completion_tokens == usage.completion_tokens
    assert tokens.prompt_tokens == usage.prompt_tokens < 100


def test_a_stop_string_ends_the_text_before_it(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": HELLO, "max_tokens": 12, "temperature": 0}
    text = client.chat.completions.create(**asked).choices[0].message.content
    assert text is not None
    stop = text[len(text) // 2 :][:3]
    reply = client.chat.completions.create(**asked, stop=[stop])
    assert reply.choices[0].finish_reason == "stop"
    assert reply.choices[0].message.content == text[: text.index(stop)]


def test_logprobs_come_as_asked(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "max_tokens": 4, "temperature": 0}
    chat = client.chat.completions.create(
        **asked, messages=HELLO, logprobs=True, top_logprobs=3
    ).choices[0]
    assert chat.logprobs is not None
    assert chat.logprobs.content is not None
    assert len(chat.logprobs.content) == 4
    for token in chat.logprobs.content:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == token.logprob, "greedy: the likeliest"
        if token.bytes is not None:
            assert bytes(token.bytes).decode() == token.token
    with client.chat.completions.create(
        **asked, messages=HELLO, logprobs=True, top_logprobs=3, stream=True
    ) as stream:
        streamed = [
            token
            for chunk in stream
            for choice in chunk.choices
            if choice.logprobs
            for token in choice.logprobs.content or ()
        ]
    assert streamed == chat.logprobs.content
    plain = client.completions.create(**asked, prompt="The sea", logprobs=2).choices[0]
    assert plain.logprobs is not None
    assert len(plain.logprobs.tokens or ()) == len(plain.logprobs.token_logprobs or ()) == 4
    assert all(len(top) <= 2 for top in plain.logprobs.top_logprobs or ())


def test_a_seed_gives_the_same_text_again(client: openai.OpenAI) -> None:
    def text(seed: int) -> str | None:
        reply = client.chat.completions.create(
            model=MODEL, messages=HELLO, max_tokens=8, seed=seed, temperature=1.2
        )
        return reply.choices[0].message.content

    assert text(11) == text(11)
    assert len({text(seed) for seed in range(4)}) > 1


def test_plain_completions_take_text_and_tokens(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "max_tokens": 5, "temperature": 0}
    reply = client.completions.create(**asked, prompt="The sea is")
    assert reply.object == "text_completion"
    with client.completions.create(**asked, prompt=["The sea is"], stream=True) as stream:
        assert "".join(c.choices[0].text for c in stream) == reply.choices[0].text
    tokens = client.completions.create(**asked, prompt=[5, 6, 7])
    assert tokens.usage is not None
    assert tokens.usage.prompt_tokens == 3


def test_models_are_listed_and_one_is_shown(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.owned_by) == (MODEL, "kvtier")
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


@pytest.mark.parametrize(
    ("said", "error", "code", "parameter"),
    [
        ({"model": "gpt-4"}, openai.NotFoundError, "model_not_found", "model"),
        ({"temperature": 11}, openai.BadRequestError, "invalid_sampling", "temperature"),
        ({"n": 17}, openai.BadRequestError, "invalid_limit", "n"),
        ({"n": 2, "temperature": 0}, openai.BadRequestError, "invalid_sampling", "n"),
        ({"stop": ["x"] * 9}, openai.BadRequestError, "invalid_limit", "stop"),
        ({"top_logprobs": 21, "logprobs": True}, openai.BadRequestError, "invalid_body",
         "top_logprobs"),
        ({"max_tokens": 10**6}, openai.BadRequestError, "context_length_exceeded", None),
        ({"messages": []}, openai.BadRequestError, "invalid_body", "messages"),
        ({"messages": [{"role": "user", "content": "x" * 9_000_000}]},
         openai.APIStatusError, "body_too_large", None),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]},
         openai.UnprocessableEntityError, "unsupported_parameter", "tools"),
        ({"service_tier": "flex"}, openai.PermissionDeniedError, "service_class_not_granted",
         "service_tier"),
        ({"user": "x" * 200}, openai.BadRequestError, "invalid_body", "user"),
        ({"extra_body": {"kvtier": {"ttl_class": "5m"}}}, openai.BadRequestError,
         "invalid_cache_control", "kvtier.ttl_class"),
        ({"extra_body": {"kvtier": {"priority": 2}}}, openai.PermissionDeniedError,
         "priority_not_granted", None),
        ({"extra_headers": {"X-Client-Request-Id": "x" * 200}}, openai.BadRequestError,
         "invalid_limit", "X-Client-Request-Id"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_an_error_is_the_clients_own_and_names_the_parameter(
    client: openai.OpenAI, said: dict[str, Any], error: Any, code: str, parameter: str, stream: bool
) -> None:
    asked = {"model": MODEL, "messages": HELLO, "max_tokens": 1, "stream": stream} | said
    with pytest.raises(error) as refused:
        client.chat.completions.create(**asked)
    assert refused.value.code == code
    assert refused.value.param == parameter
    assert refused.value.message
    if code == "body_too_large":
        assert refused.value.status_code == 413


@pytest.mark.parametrize("key", ["sk-wrong", "sk-kvtier-" + "0" * 16 + "-" + "x" * 43])
def test_without_a_key_of_ours_nobody_gets_in(stack: Stack, key: str) -> None:
    with stack.client(key) as stranger:
        for call in (
            lambda: stranger.chat.completions.create(model=MODEL, messages=HELLO),
            lambda: stranger.completions.create(model=MODEL, prompt="x"),
            lambda: stranger.models.list(),
            lambda: stranger.models.retrieve(MODEL),
        ):
            with pytest.raises(openai.AuthenticationError) as refused:
                call()
            assert refused.value.code == "invalid_api_key"


def test_a_key_of_an_organisation_that_is_not_served_is_told_so(stack: Stack) -> None:
    with (
        stack.client(stack.key("nowhere")) as stranger,
        pytest.raises(openai.PermissionDeniedError) as refused,
    ):
        stranger.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=1)
    assert refused.value.code == "tenant_unknown"


def hits(client: openai.OpenAI, text: str, **said: Any) -> int:
    messages: list[Any] = [{"role": "user", "content": text}]
    reply = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=1, **said)
    usage: Any = reply.usage
    return int(usage.prompt_cache_hit_tokens)


def test_a_user_narrows_the_cache_to_himself(client: openai.OpenAI) -> None:
    text = "one of two users wrote this " * 30
    assert hits(client, text, user="ann") == 0
    assert hits(client, text, user="bob") == 0
    assert hits(client, text) == 0
    assert hits(client, text, extra_body={"user_id": "ann"}) > 0
    assert hits(client, text, user="ann ") == 0, "another user, however alike"
    assert hits(client, text) > 0


def test_keys_of_one_organisation_share_and_those_of_another_do_not(stack: Stack) -> None:
    text = "an organisation's own text " * 30
    with (
        stack.client(stack.key("acme", "one")) as one,
        stack.client(stack.key("acme", "two")) as two,
        stack.client(stack.key("umbra", "one")) as other,
    ):
        assert hits(one, text) == 0
        assert hits(other, text) == 0
        assert hits(two, text) > 0


def test_key_session_class_and_names_are_in_the_usage_event(stack: Stack) -> None:
    key, text = stack.key_and_text("acme", "search", "batch", "flex")
    with stack.client(text) as client:
        reply = client.chat.completions.create(
            model=MODEL,
            messages=HELLO,
            max_tokens=1,
            user="ann",
            service_tier="flex",
            extra_body={"prompt_cache_key": "talk-7"},
            extra_headers={"X-Client-Request-Id": "mine"},
        )
    assert reply.service_tier == "flex"
    event = stack.event_of(reply.id)
    assert (event.key_id, event.session_id, event.service_class) == (key.key_id, "talk-7", "flex")
    assert (event.user_id, event.client_request_id) == ("ann", "mine")


async def test_64_streams_at_once_end_well_and_add_up_to_the_ledger(stack: Stack) -> None:
    key, text = stack.key_and_text()

    async def one(client: openai.AsyncOpenAI, number: int) -> Any:
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": f"stream {number} " * (number % 7 + 1)}],
            max_tokens=4 + number % 5,
            n=1 + number % 2,
            stream=True,
            stream_options={"include_usage": True},
        )
        last = None
        async for chunk in stream:
            last = chunk
        assert last is not None
        return last.usage

    async with openai.AsyncOpenAI(
        api_key=text, base_url=stack.url, max_retries=0, timeout=240
    ) as client:
        said = await asyncio.gather(*(one(client, number) for number in range(64)))
    row = await asyncio.to_thread(stack.usage_of, key.key_id, 64)
    assert row.request_count == 64
    assert row.tokens == usage_pb2.TokenUsage(
        prompt_tokens=sum(each.prompt_tokens for each in said),
        hit_tokens=sum(each.prompt_cache_hit_tokens for each in said),
        miss_tokens=sum(each.prompt_cache_miss_tokens for each in said),
        completion_tokens=sum(each.completion_tokens for each in said),
        hit_tokens_by_tier=row.tokens.hit_tokens_by_tier,
        cache_write_tokens=row.tokens.cache_write_tokens,
    )


def test_a_stream_that_is_left_ends_at_the_worker_too(stack: Stack, client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model=MODEL,
        messages=HELLO,
        max_tokens=4000,
        stream=True,
        extra_body={"kvtier": {"ignore_end_of_sequence": True}},
    ) as stream:
        chunk = next(iter(stream))
    event = stack.event_of(chunk.id)
    assert event.end_reason == usage_pb2.END_REASON_CANCELLED
    assert 1 <= event.tokens.completion_tokens < 2000
