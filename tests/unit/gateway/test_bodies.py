"""Bodies: what they become, and which parameter a wrong one names."""

import json
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.body_fields import OBJECTS_MAX, Objects
from gateway.body_reader import BodyReader
from gateway.chat_body import ChatBody, chat_request, read_chat
from gateway.completion_body import CompletionBody, completion_request, read_completion
from gateway.errors import InvalidBodyError, UnsupportedError
from kvtier.errors import KvtierError
from kvtier.v1 import inference_pb2 as pb

HELLO = [{"role": "user", "content": "hello"}]


def chat(**said: Any) -> pb.GenerateRequest:
    body = {"model": "demo", "messages": HELLO} | said
    return chat_request(read_chat(json.dumps(body).encode()))


def completion(**said: Any) -> pb.GenerateRequest:
    body = {"model": "demo", "prompt": "hello"} | said
    return completion_request(read_completion(json.dumps(body).encode()))


def refused(make: Any, **said: Any) -> KvtierError:
    with pytest.raises((InvalidBodyError, UnsupportedError)) as caught:
        make(**said)
    return caught.value


def test_a_chat_becomes_the_workers_request() -> None:
    request = chat(
        messages=[
            {"role": "developer", "content": "rules"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
            {"role": "assistant", "content": "c", "refusal": None, "tool_calls": None},
        ],
        max_completion_tokens=7,
        temperature=0.5,
        top_p=0.9,
        top_k=3,
        min_p=0.1,
        n=4,
        stop=["x", "y"],
        seed=-5,
        presence_penalty=1,
        frequency_penalty=-1.5,
        logprobs=True,
        top_logprobs=2,
        prompt_cache_key="talk",
        kvtier={
            "cache_mode": "read_only",
            "cache_scope": "project",
            "cache_timeout_seconds": 1.5,
            "one_off": True,
            "ttl_class": "5m",
            "priority": -1,
            "stop_token_ids": [5],
            "ignore_end_of_sequence": True,
        },
    )
    wanted = pb.GenerateRequest(
        model="demo",
        max_completion_tokens=7,
        sample_count=4,
        stop=["x", "y"],
        logprobs=2,
        session_id="talk",
        cache_mode=pb.CACHE_MODE_READ_ONLY,
        cache_scope=pb.CACHE_SCOPE_PROJECT,
        one_off=True,
        ttl_class="5m",
        priority=-1,
        stop_token_ids=[5],
        ignore_end_of_sequence=True,
        sampling=pb.SamplingParameters(
            temperature=0.5,
            top_p=0.9,
            top_k=3,
            min_p=0.1,
            seed=-5,
            presence_penalty=1,
            frequency_penalty=-1.5,
        ),
    )
    wanted.cache_timeout.FromMilliseconds(1500)
    for role, content in (("system", "rules"), ("user", "ab"), ("assistant", "c")):
        wanted.chat.messages.add(role=role, content=content)
    assert request == wanted


def test_what_is_left_out_is_as_such_clients_expect() -> None:
    for request in (chat(), completion()):
        assert (request.sampling.temperature, request.sample_count) == (1.0, 1)
        assert not request.HasField("logprobs")
        assert not request.sampling.HasField("seed")
        assert request.max_completion_tokens == 0
    assert chat(temperature=0).sampling.temperature == 0
    assert chat(logprobs=True).logprobs == 0
    assert chat(logprobs=True).HasField("logprobs")


def test_a_prompt_is_a_text_or_tokens() -> None:
    assert completion(prompt="a").text == completion(prompt=["a"]).text == "a"
    for prompt in ([1, 2], [[1, 2]]):
        assert list(completion(prompt=prompt).tokens.token_ids) == [1, 2]
    assert refused(completion, prompt=["a", "b"]).parameter == "prompt"
    for prompt in ([1, "a"], [1.5], [-1], [2**31], [True], [[1], [2]], 5, None, [None]):
        assert refused(completion, prompt=prompt).parameter == "prompt"


@pytest.mark.parametrize(
    ("said", "parameter"),
    [
        ({"model": ""}, "model"),
        ({"model": None}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [5]}, "messages.0"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "root", "content": "x"}]}, "messages.0.role"),
        ({"messages": [*HELLO, {"role": "user", "content": 5}]}, "messages.1.content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages.0.content.0.text",
        ),
        ({"messages": [{"role": "user", "content": "x", "rank": 1}]}, "messages.0.rank"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 1.5}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2**31}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"stop": 5}, "stop"),
        ({"stop": ["a", 5]}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"more": True}}, "stream_options.more"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"kvtier": {"cache_mode": "never"}}, "kvtier.cache_mode"),
        ({"kvtier": {"cache_timeout_seconds": -1}}, "kvtier.cache_timeout_seconds"),
        ({"kvtier": {"tenant_id": "umbra"}}, "kvtier.tenant_id"),
        ({"tenant_id": "umbra"}, "tenant_id"),
        ({"key_id": "k"}, "key_id"),
    ],
)
def test_a_wrong_body_names_what_is_wrong(said: dict[str, Any], parameter: str) -> None:
    error = refused(chat, **said)
    assert isinstance(error, InvalidBodyError)
    assert error.parameter == parameter or (parameter == "stop" and error.parameter == "stop.1")


@pytest.mark.parametrize(
    ("said", "parameter"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"thinking": {"type": "enabled"}}, "thinking"),
        ({"store": True}, "store"),
        ({"metadata": {"a": "b"}}, "metadata"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}},
         "stream_options.include_obfuscation"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "x", "name": "ann"}]}, "messages.0.name"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
         "messages.0.content.0.type"),
    ],
)  # fmt: skip
def test_what_is_not_to_be_had_is_refused_by_name(said: dict[str, Any], parameter: str) -> None:
    error = refused(chat, **said)
    assert isinstance(error, UnsupportedError)
    assert error.parameter == parameter


def test_every_parameter_that_asks_for_nothing_passes() -> None:
    nothing = {
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "response_format": {"type": "text"},
        "logit_bias": {},
        "modalities": ["text"],
        "store": False,
        "metadata": {},
        "reasoning_effort": "none",
        "thinking": {"type": "disabled"},
    }
    assert (
        chat(**nothing) == chat(**dict.fromkeys(ChatBody.model_fields.keys() & nothing)) == chat()
    )
    assert completion(echo=False, suffix="", best_of=1) == completion()
    for name in ChatBody.model_fields.keys() - {"model", "messages"}:
        assert chat(**{name: None}) == chat(), name
    for name in CompletionBody.model_fields.keys() - {"model", "prompt"}:
        assert completion(**{name: None}) == completion(), name


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"null", b"[]", b'"x"', b"\xff", b'{"model": "\\ud800"}', b"[" * 100_000,
     b'{"model": NaN}'],
)  # fmt: skip
def test_what_is_no_body_is_refused(raw: bytes) -> None:
    for read in (read_chat, read_completion):
        with pytest.raises(InvalidBodyError):
            read(raw)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(
    said=st.dictionaries(st.sampled_from(sorted(ChatBody.model_fields)), JSON, max_size=4),
    extra=st.dictionaries(st.text(max_size=8), JSON, max_size=1),
)
def test_any_json_is_a_request_or_a_refusal(said: dict[str, Any], extra: dict[str, Any]) -> None:
    body = {"model": "demo", "messages": HELLO, "prompt": "x"} | said | extra
    for read, make in ((read_chat, chat_request), (read_completion, completion_request)):
        try:
            request = make(read(json.dumps(body).encode()))  # type: ignore[arg-type]
        except (InvalidBodyError, UnsupportedError):
            continue
        assert request.model
        assert {request.tenant_id, request.key_id, request.service_class} == {""}


def test_users_may_be_named_by_either_word() -> None:
    def said(**words: str) -> tuple[str | None, str]:
        body = {"model": "demo", "messages": HELLO} | words
        return read_chat(json.dumps(body).encode()).user_said

    assert said(user="ann") == ("ann", "user")
    assert said(user_id="ann") == ("ann", "user_id")
    assert said(user="ann", user_id="ann")[0] == "ann"
    assert said()[0] is None
    with pytest.raises(InvalidBodyError):
        said(user="ann", user_id="bob")


def of_size(unit: str, before: str, after: str, size: int = 1 << 20) -> bytes:
    return (before + ",".join([unit] * (size // (len(unit) + 1))) + after).encode()


MODEL_AND = '{"model":"demo","messages":'
HOSTILE = {
    "wrong messages": of_size("1", MODEL_AND + "[", "]}"),
    "too many messages": of_size('{"role":"user","content":""}', MODEL_AND + "[", "]}"),
    "wrong parts": of_size("1", MODEL_AND + '[{"role":"user","content":[', "]}]}"),
    "too many parts": of_size('{"type":"text"}', MODEL_AND + '[{"role":"user","content":[', "]}]}"),
    "parts of many messages": of_size(
        '{"role":"user","content":[' + ",".join(['{"type":"text","text":""}'] * 99) + "]}",
        MODEL_AND + "[", "]}",
    ),
    "wrong stops": of_size("1", MODEL_AND + '[{"role":"user","content":""}],"stop":[', "]}"),
    "too many stops": of_size('""', MODEL_AND + '[{"role":"user","content":""}],"stop":[', "]}"),
    "wrong stop tokens": of_size(
        '""', MODEL_AND + '[{"role":"user","content":""}],"kvtier":{"stop_token_ids":[', "]}}"
    ),
    "unknown names": (
        MODEL_AND + '[{"role":"user","content":""}],'
        + ",".join(f'"a{n}":1' for n in range(90_000)) + "}"
    ).encode(),
    "unknown names of a message": (
        MODEL_AND + '[{"role":"user",' + ",".join(f'"a{n}":1' for n in range(90_000)) + "}]}"
    ).encode(),
}  # fmt: skip


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE.keys())
def test_reading_a_wrong_body_ends_at_the_first_wrong_thing(raw: bytes) -> None:
    with pytest.raises(ValidationError) as wrong:
        ChatBody.model_validate_json(raw, context=Objects())
    assert wrong.value.error_count() <= 3
    with pytest.raises(InvalidBodyError) as refused:
        read_chat(raw)
    assert len(str(refused.value)) < 300


async def test_a_large_body_is_read_beside_the_loop_and_says_the_same() -> None:
    bodies, threads = BodyReader(), set[int]()

    def read(raw: bytes) -> ChatBody:
        threads.add(threading.get_ident())
        return read_chat(raw)

    large = json.dumps({"model": "demo", "messages": HELLO, "user": "x" * 70_000}).encode()
    try:
        assert (await bodies.read(read, large)).user == "x" * 70_000
        with pytest.raises(InvalidBodyError):
            await bodies.read(read, large[:-1])
        assert threading.get_ident() not in threads
        await bodies.read(read, json.dumps({"model": "demo", "messages": HELLO}).encode())
        assert threading.get_ident() in threads
    finally:
        bodies.close()


def test_of_a_list_with_too_much_or_something_wrong_the_list_is_told() -> None:
    parts = [{"type": "text", "text": ""}] * (OBJECTS_MAX + 1)
    error = refused(chat, messages=[{"role": "user", "content": parts}])
    assert str(error) == "messages.0.content has more entries than are taken here"
    many = [{"role": "user", "content": parts[:100]}] * 200
    assert "fewer messages and parts" in str(refused(chat, messages=many))
    error = refused(chat, messages=[{"role": "user", "content": [{"type": "text", "x": 1}]}])
    assert str(error) == "messages.0.content.0.x is not a parameter of this path"
    assert str(refused(chat, messages=[{"role": "user", "content": 5}])).endswith("must be a text")


def test_token_ids_are_bounded_however_they_are_written() -> None:
    for before, after in (("[", "]"), ("[[", "]]")):
        raw = of_size("1", '{"model":"demo","prompt":' + before, after + "}", 3 << 20)
        with pytest.raises(InvalidBodyError) as error:
            completion_request(read_completion(raw))
        assert error.value.parameter == "prompt"
