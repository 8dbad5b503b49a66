"""`kvtier generate` and `kvtier chat` as a person or a program runs them."""

import json
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner

from kvtier.cli.main import build
from kvtier.cli.reply_view import visible
from kvtier.v1 import inference_pb2 as pb
from kvtier.v1 import usage_pb2

NOBODY = "127.0.0.1:1"
FOOTER = (
    "prompt 4,537 = 4,480 hit (4,416 GPU, 64 SSD) + 57 miss, completion 2, TTFT 93 ms\n"
    "cost CNY 0.000509, 0.004032 saved by hits\n"
)


def run(*arguments: str, typed: str | bytes = "") -> Any:
    return CliRunner().invoke(build(), arguments, input=typed)


def generate(worker: Any, till: Any, *more: str, typed: str | bytes = "") -> Any:
    where = ("--address", worker.address, "--billing", till.address)
    return run("generate", *(more or ("hi",)), *where, typed=typed)


def test_the_answer_is_on_standard_output_and_usage_and_cost_are_not(worker, till):
    printed = generate(worker, till)
    assert (printed.exit_code, printed.stdout, printed.stderr) == (0, "Hello\n", FOOTER)


def test_the_cost_is_asked_for_the_replys_tokens_model_and_end(worker, till):
    generate(worker, till)
    (asked,) = till.requests
    assert (asked.model, asked.tokens.hit_tokens, asked.tokens.miss_tokens) == ("demo", 4_480, 57)
    assert asked.end_time.ToSeconds() == 1_755_000_000


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), ("default", "", "", pb.CACHE_SCOPE_UNSPECIFIED)),
        (
            ("--tenant", "acme", "--project", "search", "--user", "ann", "--cache-scope", "user"),
            ("acme", "search", "ann", pb.CACHE_SCOPE_USER),
        ),
    ],
)
def test_who_asks_and_the_scope_go_into_the_request(worker, till, more, said):
    generate(worker, till, "hi", *more)
    (asked,) = worker.requests
    assert (asked.tenant_id, asked.project_id, asked.user_id, asked.cache_scope) == said


def test_what_may_be_done_with_the_cache_goes_into_the_request(worker, till):
    generate(worker, till)
    generate(worker, till, "hi", "--cache", "read-only", "--cache-timeout", "0.25", "--one-off")
    generate(worker, till, "hi", "--cache", "no-store")
    generate(worker, till, "hi", "--ttl-class", "1h")
    plain, hurried, secret, brief = worker.requests
    assert (plain.ttl_class, brief.ttl_class) == ("", "1h")
    assert (plain.cache_mode, plain.HasField("cache_timeout"), plain.one_off) == (0, False, False)
    assert hurried.one_off
    assert hurried.cache_mode == pb.CACHE_MODE_READ_ONLY
    assert hurried.cache_timeout.ToMilliseconds() == 250
    assert secret.cache_mode == pb.CACHE_MODE_BYPASS


def test_json_is_one_object_with_numbers_and_decimal_text(worker, till):
    printed = generate(worker, till, "hi", "--json")
    assert printed.stderr == ""
    data = json.loads(printed.stdout)
    assert (data["text"], data["finish_reason"], data["model"]) == ("Hello", "length", "demo")
    assert data["usage"] == {
        "prompt_tokens": 4537,
        "hit_tokens": 4480,
        "hit_tokens_by_tier": {"gpu": 4416, "host": 0, "ssd": 64, "shared": 0},
        "miss_tokens": 57,
        "completion_tokens": 2,
        "computed": {
            "prompt_tokens": 4537,
            "hit_tokens": 4480,
            "hit_tokens_by_tier": {"gpu": 4416, "host": 0, "ssd": 64, "shared": 0},
            "miss_tokens": 57,
            "completion_tokens": 2,
        },
        "miss_reason": None,
        "end_time": "2025-08-12T12:00:00Z",
        "ttft_seconds": 0.093,
        "queue_seconds": 0.0,
        "load_seconds": 0.0,
    }
    assert data["cost"] == {
        "amount": "0.000509",
        "saved": "0.004032",
        "currency": "CNY",
        "price_book_version": "v1",
    }
    assert data["cost_problem"] == ""
    assert (data["logprobs"], data["error"]) == (None, None)


def test_an_adapter_goes_into_the_request(worker, till):
    generate(worker, till)
    generate(worker, till, "hi", "--adapter", "poet")
    run("chat", "--adapter", "clerk", "--address", worker.address, "--billing", "", typed="hi\n")
    assert [request.adapter for request in worker.requests] == ["", "poet", "clerk"]


def test_a_priority_is_asked_for_only_where_one_is_named(worker, till):
    generate(worker, till)
    generate(worker, till, "hi", "--priority", "-2")
    generate(worker, till, "hi", "--priority", "0")
    assert [r.priority if r.HasField("priority") else None for r in worker.requests] == [
        None,
        -2,
        0,
    ]


def test_every_word_on_sampling_goes_into_the_request(worker, till):
    generate(worker, till)
    generate(
        worker,
        till,
        "hi",
        *("--temperature", "0.7", "--top-p", "0.9", "--top-k", "40", "--min-p", "0.05"),
        *("--seed", "-3", "--presence-penalty", "0.5", "--frequency-penalty", "-1.5"),
        *("--stop", "END", "--stop", "---", "--stop-token", "7", "--stop-token", "0"),
        *("--logprobs", "2", "--name", "mine"),
    )
    plain, full = worker.requests
    assert plain.sampling == pb.SamplingParameters()
    assert not plain.HasField("logprobs")
    assert (plain.client_request_id, list(plain.stop), list(plain.stop_token_ids)) == ("", [], [])
    assert full.sampling == pb.SamplingParameters(
        temperature=0.7,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        seed=-3,
        presence_penalty=0.5,
        frequency_penalty=-1.5,
    )
    assert (list(full.stop), list(full.stop_token_ids)) == (["END", "---"], [7, 0])
    assert (full.logprobs, full.client_request_id) == (2, "mine")


TOLD = pb.TokenLogprob(
    token_id=7,
    text="\x1b[red]",
    logprob=-0.5,
    top=[pb.TopLogprob(token_id=9, text=" the", logprob=-0.25)],
)


def test_logprobs_are_a_table_beside_the_answer_or_part_of_the_json(worker, till):
    worker.logprobs = (TOLD,)
    printed = generate(worker, till, "hi", "--logprobs", "1")
    assert printed.stdout == "Hello\n"
    assert printed.stderr.endswith(FOOTER)
    table = printed.stderr.removesuffix(FOOTER)
    assert "\x1b" not in table
    rows = [line.split() for line in table.splitlines() if "-0.5000" in line]
    assert rows == [["'\\x1b[red]'", "-0.5000", "60.7%", "'", "the'", "-0.250"]] * 2
    data = json.loads(generate(worker, till, "hi", "--logprobs", "1", "--json").stdout)
    top = [{"token_id": 9, "text": " the", "logprob": -0.25}]
    told = {"token_id": 7, "text": "\x1b[red]", "logprob": -0.5, "top": top}
    assert data["logprobs"] == [told, told]


def test_a_request_that_failed_shows_what_was_computed_beside_its_error(worker, till):
    worker.failure = (grpc.StatusCode.INTERNAL, "the engine gave up")
    printed = generate(worker, till)
    assert (printed.exit_code, printed.stdout) == (1, "Hello\n")
    first, cost, error = printed.stderr.splitlines()
    assert first == FOOTER.splitlines()[0] + ", not charged"
    assert cost.startswith("cost CNY")
    assert error == "kvtier generate: INTERNAL: the engine gave up"
    printed = generate(worker, till, "hi", "--json")
    assert printed.exit_code == 1
    data = json.loads(printed.stdout)
    assert data["error"] == {
        "code": "INTERNAL",
        "reason": "",
        "message": "the engine gave up",
        "metadata": {},
    }
    assert data["text"] == "Hello"
    assert (data["usage"]["prompt_tokens"], data["usage"]["computed"]["prompt_tokens"]) == (0, 4537)


def test_a_chat_that_fails_shows_what_was_computed_and_ends(worker, till):
    worker.failure = (grpc.StatusCode.DEADLINE_EXCEEDED, "too late")
    where = ("--address", worker.address, "--billing", till.address)
    printed = run("chat", *where, typed="one\ntwo\n")
    assert (printed.exit_code, printed.stdout) == (1, "Hello\n")
    assert "4,480 hit" in printed.stderr
    assert len(worker.requests) == 1


def test_without_billing_the_cost_is_unknown_and_the_answer_stands(worker):
    where = ("--address", worker.address, "--billing", NOBODY)
    printed = run("generate", "hi", *where)
    assert (printed.exit_code, printed.stdout) == (0, "Hello\n")
    assert f"cost unknown: no billing service answers at {NOBODY}" in printed.stderr
    data = json.loads(run("generate", "hi", "--json", *where).stdout)
    assert data["cost"] is None
    assert NOBODY in data["cost_problem"]


def test_a_billing_service_that_cannot_rate_is_said_so(worker):
    printed = run("generate", "hi", "--address", worker.address, "--billing", worker.address)
    assert "cost unknown: billing at" in printed.stderr
    assert "older version" in printed.stderr


def test_a_model_without_a_price_costs_an_unknown_amount_not_nothing(worker, till):
    till.answer = usage_pb2.RateUsageResponse(amount="0", saved_amount="0")
    printed = generate(worker, till)
    assert "cost unknown: no version of the price book covers demo" in printed.stderr


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_a_worker_that_is_not_there_is_one_line_that_says_what_to_do(command):
    arguments = [command, *(["hi"] if command == "generate" else []), "--address", NOBODY]
    printed = run(*arguments, typed="hi\n")
    assert (printed.exit_code, printed.stdout) == (1, "")
    assert printed.stderr.count("\n") == 1
    assert "WORKER_UNREACHABLE" in printed.stderr
    assert "kvtier up" in printed.stderr


def test_what_the_worker_refuses_leaves_standard_output_empty(worker, till):
    worker.refusal = (grpc.StatusCode.INVALID_ARGUMENT, "the prompt is empty")
    for more in (("",), ("", "--json")):
        printed = generate(worker, till, *more)
        assert (printed.exit_code, printed.stdout) == (1, "")
        assert "the prompt is empty" in printed.stderr


@pytest.mark.parametrize(
    "option",
    [
        ("--max-tokens", "0"),
        ("--max-tokens", "99999999999"),
        ("--temperature", "11"),
        ("--temperature", "-1"),
        ("--temperature", "nan"),
        ("--top-p", "1.1"),
        ("--top-p", "0"),
        ("--top-p", "nan"),
        ("--top-k", "0"),
        ("--min-p", "nan"),
        ("--presence-penalty", "2.1"),
        ("--frequency-penalty", "-3"),
        ("--logprobs", "21"),
        ("--stop-token", "-1"),
        ("--stop", "\udcff"),
        ("--seed", "9223372036854775808"),
        ("--priority", "3"),
        ("--cache", "sometimes"),
        ("--cache-timeout", "-1"),
        ("--cache-timeout", "nan"),
        ("--tenant", "\udcff"),
    ],
)
def test_a_number_out_of_range_is_a_usage_error(worker, till, option):
    assert generate(worker, till, "hi", *option).exit_code == 2
    assert worker.requests == []


def test_a_prompt_that_no_call_can_carry_says_what_to_do(worker, till):
    printed = generate(worker, till, "x" * (5 << 20))
    assert (printed.exit_code, printed.stdout) == (1, "")
    assert "RESOURCE_EXHAUSTED" in printed.stderr
    assert "shorten" in printed.stderr
    assert worker.requests == []


def test_a_dash_reads_utf8_from_standard_input(worker, till):
    assert generate(worker, till, "-", "--raw", typed="größe").exit_code == 0
    assert worker.requests[0].text == "größe"
    printed = generate(worker, till, "-", typed=b"\xff\xfe")
    assert (printed.exit_code, printed.stdout) == (2, "")
    assert "not UTF-8" in printed.stderr


def test_a_chat_sends_what_was_said_before(worker, till):
    where = ("--address", worker.address, "--billing", till.address)
    printed = run("chat", *where, "--system", "be brief", typed="one\ntwo\n\nthree\n")
    assert (printed.exit_code, printed.stdout) == (0, "Hello\nHello\n")
    assert printed.stderr == FOOTER * 2
    said = [[(m.role, m.content) for m in r.chat.messages] for r in worker.requests]
    assert said[1] == [
        ("system", "be brief"),
        ("user", "one"),
        ("assistant", "Hello"),
        ("user", "two"),
    ]


def test_what_a_model_writes_cannot_steer_a_terminal():
    assert visible("a\x1b[2Jb\r\n\tc\x9b") == "a\ufffd[2Jb\ufffd\n\tc\ufffd"


def test_the_list_of_commands_cuts_no_sentence():
    printed = run("--help")
    assert printed.exit_code == 0
    assert "..." not in printed.stdout.partition("Commands:")[2]


def test_the_version_is_told():
    printed = run("--version")
    assert printed.exit_code == 0
    assert printed.stdout.startswith("kvtier ")
