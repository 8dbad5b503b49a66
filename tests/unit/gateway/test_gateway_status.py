"""Every error has its status, on both faces; every reason of a worker has one."""

import re
from pathlib import Path

import grpc
import pytest

import gateway.errors
import worker.errors
from gateway.errors import GatewayError, InvalidBodyError, WorkerError
from gateway.status import GRPC_STATUS_TABLE, HTTP_OF_CLASS, HTTP_OF_REASON, refusal_of
from kvtier.errors import KvtierError, WireError
from kvtier.serving import ShuttingDownError
from worker.status import STATUS_TABLE

ROOT = Path(__file__).resolve().parents[3]


def descendants(kind: type[KvtierError]) -> set[type[KvtierError]]:
    return {kind, *(each for sub in kind.__subclasses__() for each in descendants(sub))}


OWN = {kind for kind in descendants(GatewayError) if not kind.__name__.startswith("_")}


@pytest.mark.parametrize("kind", sorted(OWN - {WorkerError}, key=lambda k: k.__name__))
def test_every_error_of_the_room_has_a_status_on_both_faces(kind: type[KvtierError]) -> None:
    assert kind in HTTP_OF_CLASS
    assert kind in GRPC_STATUS_TABLE
    assert kind.__name__ in gateway.errors.__all__


def wire(reason: str, code: grpc.StatusCode, **metadata: str) -> WorkerError:
    return WorkerError(WireError(code, reason, "the worker's sentence", metadata))


OF_REQUESTS = {
    kind.reason
    for kind, code in STATUS_TABLE.items()
    if code is not grpc.StatusCode.FAILED_PRECONDITION and kind is not worker.errors.WorkerError
}


OF_OTHER_CALLS = {"INVALID_REQUEST_ID"}
"""What a worker says to calls that the gateway does not make."""


@pytest.mark.parametrize("reason", sorted(OF_REQUESTS - OF_OTHER_CALLS))
def test_every_reason_that_a_worker_gives_a_request_has_a_status(reason: str) -> None:
    assert reason in HTTP_OF_REASON


def test_every_reason_that_the_contract_names_has_a_status() -> None:
    text = (ROOT / "proto/kvtier/v1/inference.proto").read_text()
    promised = text.split("service InferenceService")[1].split("rpc GetModel")[0]
    words = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b|\bDEADLINE\b", promised))
    codes = {code.name for code in grpc.StatusCode}
    others = {"ROLE_NOT_ALLOWED"}
    assert words - codes - others <= set(HTTP_OF_REASON)


@pytest.mark.parametrize(
    ("error", "status", "code", "parameter"),
    [
        (InvalidBodyError("x", "n"), 400, "invalid_body", "n"),
        (gateway.errors.KeyRefusedError("x"), 401, "invalid_api_key", None),
        (gateway.errors.BodyTooLargeError("x"), 413, "body_too_large", None),
        (gateway.errors.UnsupportedError("x", "tools"), 422, "unsupported_parameter", "tools"),
        (gateway.errors.KeyBusyError("x"), 429, "rate_limit_exceeded", None),
        (ShuttingDownError("x"), 503, "shutting_down", None),
        (wire("QUEUE_FULL", grpc.StatusCode.RESOURCE_EXHAUSTED), 429, "queue_full", None),
        (wire("MODEL_UNKNOWN", grpc.StatusCode.NOT_FOUND), 404, "model_not_found", "model"),
        (
            wire("PROMPT_TOO_LONG", grpc.StatusCode.OUT_OF_RANGE),
            400,
            "context_length_exceeded",
            None,
        ),
        (
            wire("INVALID_SAMPLING", grpc.StatusCode.INVALID_ARGUMENT, field="sampling.top_p"),
            400,
            "invalid_sampling",
            "top_p",
        ),
        (wire("", grpc.StatusCode.UNAVAILABLE), 503, "worker_lost", None),
        (wire("", grpc.StatusCode.DEADLINE_EXCEEDED), 504, "deadline", None),
        (wire("", grpc.StatusCode.UNIMPLEMENTED), 500, "internal", None),
        (wire("ROLE_NOT_ALLOWED", grpc.StatusCode.PERMISSION_DENIED), 500, "internal", None),
    ],
)
def test_a_refusal_has_openais_shape(
    error: KvtierError, status: int, code: str, parameter: str | None
) -> None:
    refusal = refusal_of(error)
    assert refusal.status == status
    said = refusal.fields["error"]
    assert set(said) == {"message", "type", "param", "code"}
    assert (said["code"], said["param"]) == (code, parameter)
    assert said["message"]
    assert (dict(refusal.headers).get(b"retry-after") is not None) == (status in (429, 503))


def test_what_a_worker_says_to_the_gateway_alone_is_not_told() -> None:
    secret = wire("ROLE_NOT_ALLOWED", grpc.StatusCode.PERMISSION_DENIED)
    assert "worker's sentence" not in str(refusal_of(secret).fields)


def test_a_field_of_the_worker_has_the_callers_name_in_the_message_too() -> None:
    error = WorkerError(
        WireError(
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_LIMIT",
            "sample_count must be 1 to 16",
            {"field": "sample_count"},
        )
    )
    assert refusal_of(error).fields["error"]["message"] == "n must be 1 to 16"


@pytest.mark.parametrize(
    ("reason", "status", "code"),
    [
        ("INSUFFICIENT_BALANCE", 402, "insufficient_balance"),
        ("BUDGET_EXHAUSTED", 429, "insufficient_quota"),
        ("QUOTA_EXCEEDED", 429, "rate_limit_exceeded"),
        ("BUDGET_UNAVAILABLE", 503, "budget_unavailable"),
    ],
)
def test_money_that_is_not_there_has_its_status_and_says_when_to_come_back(
    reason: str, status: int, code: str
) -> None:
    refusal = refusal_of(
        wire(reason, grpc.StatusCode.FAILED_PRECONDITION, retry_after_seconds="90")
    )
    assert (refusal.status, refusal.fields["error"]["code"]) == (status, code)
    wait = dict(refusal.headers).get(b"retry-after")
    assert wait == (b"90" if status in (429, 503) else None)
    for strange in ("soon", "-5", "0", "9" * 5000):
        odd = refusal_of(wire(reason, grpc.StatusCode.UNAVAILABLE, retry_after_seconds=strange))
        assert odd.retry_after_seconds == 1
