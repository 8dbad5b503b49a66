"""What `usage.proto` promises, asked over gRPC of a real billing service in this process."""

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from billing.server import start_billing
from billing.settings import BillingSettings
from kvtier.errors import read_error
from kvtier.service_settings import CallLimitSettings
from kvtier.tls import SecuritySettings
from kvtier.v1 import usage_pb2 as pb
from kvtier.v1 import usage_pb2_grpc

NOW = 1_755_000_000 * 10**9
HOUR = 3_600 * 10**9

Stub = Any


def _event(
    request_id: str, *, hit: int = 64, miss: int = 36, output: int = 5, **changes: Any
) -> Any:
    event = pb.UsageEvent(
        request_id=request_id,
        schema_version=1,
        tenant_id=changes.pop("tenant_id", "acme"),
        model=changes.pop("model", "demo"),
        end_reason=changes.pop("end_reason", pb.END_REASON_STOP),
        tokens=pb.TokenUsage(
            prompt_tokens=hit + miss,
            hit_tokens=hit,
            hit_tokens_by_tier=pb.HitTokensByTier(gpu=hit // 2, ssd=hit - hit // 2),
            miss_tokens=miss,
            completion_tokens=output,
        ),
    )
    end_ns = changes.pop("end_ns", NOW)
    event.start_time.FromNanoseconds(max(0, end_ns - 10**9))
    event.end_time.FromNanoseconds(end_ns)
    for name, value in changes.items():
        setattr(event, name, value)
    return event


@pytest.fixture
async def channel(tmp_path: Path) -> AsyncIterator[grpc.aio.Channel]:
    settings = BillingSettings(
        listen="127.0.0.1:0",
        data_directory=tmp_path / "billing",
        security=SecuritySettings(development=True),
    )
    billing = await start_billing(settings, lambda: NOW)
    async with grpc.aio.insecure_channel(billing.listen) as channel:
        yield channel
    await billing.drain()


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> Stub:
    return usage_pb2_grpc.UsageServiceStub(channel)


async def _record(stub: Stub, *events: pb.UsageEvent) -> list[pb.RecordOutcome]:
    return list((await stub.RecordUsage(pb.RecordUsageRequest(events=events))).outcomes)


async def test_cache_writes_are_kept_with_the_event_and_cost_nothing(stub: Stub) -> None:
    plain, written = _event("plain"), _event("written")
    written.tokens.cache_write_tokens = 32
    written.tokens.cache_write_ttl_class = "1h"
    outcomes = await _record(stub, plain, written)
    assert [each.status for each in outcomes] == [pb.RECORD_STATUS_ACCEPTED] * 2
    (again,) = await _record(stub, written)
    assert again.status == pb.RECORD_STATUS_DUPLICATE
    written.tokens.cache_write_ttl_class = "5m"
    (other,) = await _record(stub, written)
    assert (other.status, other.reason) == (pb.RECORD_STATUS_CONFLICT, "OTHER_CONTENT")
    too_many = _event("too many", miss=3, output=2)
    too_many.tokens.cache_write_tokens = 6
    (refused,) = await _record(stub, too_many)
    assert (refused.status, refused.reason) == (pb.RECORD_STATUS_REJECTED, "CACHE_WRITE_SUM")
    amounts = []
    for event in (plain, written):
        rated = await stub.RateUsage(
            pb.RateUsageRequest(model="demo", tokens=event.tokens, end_time=event.end_time)
        )
        amounts.append(rated.amount)
    assert amounts[0] == amounts[1] != "0"
    verified = await stub.VerifyLedger(pb.VerifyLedgerRequest())
    assert (verified.verified, verified.entry_count, verified.refused_count) == (True, 2, 2)


async def _reason(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as failed:
        await call
    error = read_error(failed.value)
    return error.code, error.reason


async def test_outcomes_are_in_the_order_of_the_events(stub: Stub) -> None:
    await _record(stub, _event("known"), _event("other"))
    outcomes = await _record(
        stub, _event("new"), _event("known"), _event("other", output=6), _event("bad", output=-1)
    )
    assert [(o.request_id, o.status, o.reason, o.ledger_position) for o in outcomes] == [
        ("new", pb.RECORD_STATUS_ACCEPTED, "", 3),
        ("known", pb.RECORD_STATUS_DUPLICATE, "", 1),
        ("other", pb.RECORD_STATUS_CONFLICT, "OTHER_CONTENT", 0),
        ("bad", pb.RECORD_STATUS_REJECTED, "NEGATIVE_QUANTITY", 0),
    ]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"schema_version": 0}, "UNKNOWN_SCHEMA"),
        ({"schema_version": 99}, "UNKNOWN_SCHEMA"),
        ({"end_reason": 0}, "UNKNOWN_END_REASON"),
        ({"end_reason": 77}, "UNKNOWN_END_REASON"),
        ({"tenant_id": ""}, "MISSING_TENANT"),
        ({"model": ""}, "MISSING_MODEL"),
        ({"request_id": "\x00"}, "INVALID_TEXT"),
        ({"tenant_id": "a\x00b"}, "INVALID_TEXT"),
        ({"model": "m" * 100_000}, "INVALID_TEXT"),
        ({"end_ns": NOW + 25 * HOUR}, "FUTURE"),
        ({"end_ns": 253_402_300_799 * 10**9}, "FUTURE"),
        ({"output": 2**62}, "QUANTITY_TOO_LARGE"),
        ({"end_reason": pb.END_REASON_WORKER_LOST}, "LOST_WITH_TOKENS"),
    ],
)
async def test_an_event_is_rejected_for_good_with_its_reason(
    stub: Stub, changes: dict[str, Any], reason: str
) -> None:
    for _ in range(2):
        (outcome,) = await _record(stub, _event(**{"request_id": "r", **changes}))
        assert (outcome.status, outcome.reason) == (pb.RECORD_STATUS_REJECTED, reason)
    found = await stub.VerifyLedger(pb.VerifyLedgerRequest())
    assert (found.verified, found.entry_count, found.refused_count) == (True, 0, 1)


async def test_an_empty_message_is_rejected_and_harms_nothing(stub: Stub) -> None:
    first, second = await _record(stub, pb.UsageEvent(), _event("good"))
    assert (first.status, first.reason) == (pb.RECORD_STATUS_REJECTED, "UNKNOWN_SCHEMA")
    assert second.status == pb.RECORD_STATUS_ACCEPTED
    assert list((await stub.RecordUsage(pb.RecordUsageRequest())).outcomes) == []


async def test_a_lost_worker_has_an_entry_and_costs_nothing(stub: Stub) -> None:
    lost = _event("lost", hit=0, miss=0, output=0, end_reason=pb.END_REASON_WORKER_LOST)
    (outcome,) = await _record(stub, lost)
    assert (outcome.status, outcome.ledger_position) == (pb.RECORD_STATUS_ACCEPTED, 1)
    (row,) = (await stub.GetUsage(pb.GetUsageRequest())).rows
    assert (row.request_count, row.amount, row.currency_code) == (1, "0", "CNY")


async def test_a_thousand_events_are_one_call_and_one_more_is_too_many(stub: Stub) -> None:
    outcomes = await _record(stub, *(_event(f"r{i}") for i in range(1_000)))
    assert {o.status for o in outcomes} == {pb.RECORD_STATUS_ACCEPTED}
    too_many = pb.RecordUsageRequest(events=[_event(f"s{i}") for i in range(1_001)])
    assert await _reason(stub.RecordUsage(too_many)) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "TOO_MANY_EVENTS",
    )
    assert (await stub.VerifyLedger(pb.VerifyLedgerRequest())).entry_count == 1_000


async def test_a_request_that_does_not_parse_is_malformed(channel: grpc.aio.Channel) -> None:
    call = channel.unary_unary("/kvtier.v1.UsageService/RecordUsage")
    for raw in (b"\xff\xff\xff", b"\x0a\x04\x0a\x02\xff\xfe"):
        code, reason = await _reason(call(raw))
        assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")


async def test_usage_is_summed_exactly_by_the_named_dimensions(stub: Stub) -> None:
    await _record(
        stub,
        _event("a", hit=640, miss=1, output=2),
        _event("b", hit=0, miss=10, output=2, tenant_id="beta"),
        _event("c", hit=65, miss=0, output=0, end_ns=NOW - 24 * HOUR),
    )
    request = pb.GetUsageRequest(group_by=["day", "tenant"])
    rows = (await stub.GetUsage(request)).rows
    assert [(dict(r.group), r.request_count, r.amount, r.saved_amount) for r in rows] == [
        ({"day": "2025-08-11", "tenant": "acme"}, 1, "0.0000065", "0.0000585"),
        ({"day": "2025-08-12", "tenant": "acme"}, 1, "0.000069", "0.000576"),
        ({"day": "2025-08-12", "tenant": "beta"}, 1, "0.000014", "0"),
    ]
    first = rows[0].tokens
    assert (first.prompt_tokens, first.hit_tokens, first.miss_tokens) == (65, 65, 0)
    assert (first.hit_tokens_by_tier.gpu, first.hit_tokens_by_tier.ssd) == (32, 33)


async def test_what_no_price_covers_is_a_row_without_currency(stub: Stub) -> None:
    await _record(stub, _event("old", end_ns=HOUR), _event("new"))
    unrated, rated = (await stub.GetUsage(pb.GetUsageRequest())).rows
    assert (unrated.currency_code, unrated.amount, unrated.request_count) == ("", "0", 1)
    assert rated.currency_code == "CNY"
    invoice = (await stub.GetInvoice(pb.GetInvoiceRequest(tenant_id="acme"))).invoice
    assert (invoice.request_count, invoice.unrated_request_count) == (2, 1)
    assert (await stub.VerifyLedger(pb.VerifyLedgerRequest())).unrated_count == 1


async def test_an_invoice_names_its_period_and_adds_up(stub: Stub) -> None:
    await _record(stub, *(_event(f"r{i}", hit=i, miss=3, output=7) for i in range(9)))
    request = pb.GetInvoiceRequest(tenant_id="acme")
    request.start_time.FromNanoseconds(NOW - HOUR)
    request.end_time.FromNanoseconds(NOW + HOUR)
    invoice = (await stub.GetInvoice(request)).invoice
    assert (invoice.start_time, invoice.end_time) == (request.start_time, request.end_time)
    assert [(x.token_class, x.quantity_tokens, x.amount) for x in invoice.lines] == [
        ("hit", 36, "0.000004"),
        ("miss", 27, "0.000027"),
        ("output", 63, "0.000126"),
    ]
    assert Decimal(invoice.total_amount) == sum(Decimal(x.amount) for x in invoice.lines)
    assert {x.price_book_version for x in invoice.lines} == {"example-2024-08"}


async def test_questions_that_make_no_sense_have_their_reason(stub: Stub) -> None:
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    backwards = pb.GetUsageRequest()
    backwards.start_time.FromNanoseconds(NOW)
    backwards.end_time.FromNanoseconds(NOW)
    assert await _reason(stub.GetUsage(backwards)) == (invalid, "INVALID_PERIOD")
    ancient = pb.GetInvoiceRequest(tenant_id="acme")
    ancient.start_time.seconds = -1
    assert await _reason(stub.GetInvoice(ancient)) == (invalid, "INVALID_PERIOD")
    for group_by in (["week"], ["tenant", "tenant"]):
        request = pb.GetUsageRequest(group_by=group_by)
        assert await _reason(stub.GetUsage(request)) == (invalid, "INVALID_GROUP")
    assert await _reason(stub.GetInvoice(pb.GetInvoiceRequest(tenant_id="nobody"))) == (
        grpc.StatusCode.NOT_FOUND,
        "TENANT_UNKNOWN",
    )


async def test_the_price_book_is_shown_as_it_rates(stub: Stub) -> None:
    (version,) = (await stub.GetPriceBook(pb.GetPriceBookRequest())).versions
    (price,) = version.prices
    assert (price.hit_price, price.miss_price, price.output_price) == ("0.1", "1", "2")
    assert version.effective_time.ToJsonString() == "2024-08-02T00:00:00Z"
    assert len(version.content_hash) == 64


async def test_a_rated_reply_costs_what_its_entry_costs(stub: Stub) -> None:
    event = _event("r", hit=64, miss=36, output=5)
    await _record(stub, event)
    request = pb.RateUsageRequest(model=event.model, tokens=event.tokens, end_time=event.end_time)
    rated = await stub.RateUsage(request)
    (row,) = (await stub.GetUsage(pb.GetUsageRequest())).rows
    assert (rated.amount, rated.saved_amount) == (row.amount, row.saved_amount)
    assert (rated.amount, rated.saved_amount) == ("0.0000524", "0.0000576")
    assert (rated.currency_code, rated.price_book_version) == ("CNY", "example-2024-08")
    assert (await stub.VerifyLedger(pb.VerifyLedgerRequest())).entry_count == 1


async def test_rating_without_a_time_takes_the_prices_of_now(stub: Stub) -> None:
    tokens = pb.TokenUsage(prompt_tokens=7, miss_tokens=7)
    rated = await stub.RateUsage(pb.RateUsageRequest(model="demo", tokens=tokens))
    assert (rated.amount, rated.currency_code) == ("0.000007", "CNY")
    nothing = await stub.RateUsage(pb.RateUsageRequest(model="demo"))
    assert (nothing.amount, nothing.saved_amount, nothing.currency_code) == ("0", "0", "CNY")


async def test_what_no_price_covers_is_rated_without_a_currency(stub: Stub) -> None:
    request = pb.RateUsageRequest(model="demo", tokens=_event("r").tokens)
    request.end_time.FromNanoseconds(HOUR)
    rated = await stub.RateUsage(request)
    assert rated == pb.RateUsageResponse(amount="0", saved_amount="0")


@pytest.mark.parametrize(
    "tokens",
    [
        pb.TokenUsage(prompt_tokens=3, miss_tokens=2),
        pb.TokenUsage(prompt_tokens=2, hit_tokens=2),
        pb.TokenUsage(completion_tokens=-1),
        pb.TokenUsage(prompt_tokens=10**11, miss_tokens=10**11),
    ],
)
async def test_tokens_that_make_no_sense_are_not_rated(stub: Stub, tokens: Any) -> None:
    call = stub.RateUsage(pb.RateUsageRequest(model="demo", tokens=tokens))
    assert await _reason(call) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_USAGE")


async def test_a_time_out_of_range_is_not_rated(stub: Stub) -> None:
    request = pb.RateUsageRequest(model="demo")
    request.end_time.seconds = -1
    assert await _reason(stub.RateUsage(request)) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_USAGE",
    )


async def test_the_service_says_that_it_is_healthy(channel: grpc.aio.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "kvtier.v1.UsageService"):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_reflection_describes_the_service(channel: grpc.aio.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    questions = (
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="kvtier.v1.UsageService"),
    )
    names, described = [answer async for answer in stub.ServerReflectionInfo(iter(questions))]
    assert "kvtier.v1.UsageService" in {s.name for s in names.list_services_response.service}
    assert described.file_descriptor_response.file_descriptor_proto


@pytest.mark.parametrize("limit", ["calls_max", "calls_per_session_max"])
async def test_more_calls_than_the_setting_are_refused(tmp_path: Path, limit: str) -> None:
    settings = BillingSettings(
        listen="127.0.0.1:0",
        data_directory=tmp_path / "billing",
        security=SecuritySettings(development=True),
        limits=CallLimitSettings(**{limit: 1}),
    )
    billing = await start_billing(settings)
    async with grpc.aio.insecure_channel(billing.listen) as channel:
        stub = usage_pb2_grpc.UsageServiceStub(channel)
        refused = set()
        for _ in range(100):  # until two are there at a time
            calls = [stub.GetUsage(pb.GetUsageRequest()) for _ in range(20)]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            errors = [read_error(e) for e in answers if isinstance(e, grpc.RpcError)]
            refused |= {(error.code, error.reason, error.metadata.get(limit)) for error in errors}
            if refused:
                break
    await billing.drain()
    assert refused == {(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS", "1")}
