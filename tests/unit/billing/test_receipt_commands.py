"""`kvtier receipt` against a real service: what people see, and exit statuses."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner

from billing.commands import app as usage_app
from billing.receipt_commands import app
from billing.server import RunningBilling, start_billing
from billing.settings import BillingSettings
from billing.usage import UsageEvent
from billing.wire_event import event_message
from kvtier.tls import SecuritySettings
from kvtier.v1 import receipt_opening_pb2, receipt_opening_pb2_grpc, usage_pb2, usage_pb2_grpc
from tests.receipts import proven, salt_of
from tests.unit.billing.conftest import NOW, event_of


@pytest.fixture
async def billing(tmp_path: Path) -> AsyncIterator[RunningBilling]:
    settings = BillingSettings(
        listen="127.0.0.1:0",
        data_directory=tmp_path / "billing",
        security=SecuritySettings(development=True),
    )
    running = await start_billing(settings, lambda: NOW)
    yield running
    await running.drain()


class Worker(receipt_opening_pb2_grpc.ReceiptOpeningServiceServicer):
    """Opens with the secret of `tests.receipts`, or another."""

    def __init__(self, salt: bytes) -> None:
        self._salt = salt

    async def OpenReceipt(self, request: Any, context: Any) -> Any:
        return receipt_opening_pb2.OpenReceiptResponse(salt=self._salt)


async def worker_with(salt: bytes) -> tuple[grpc.aio.Server, str]:
    server = grpc.aio.server()
    receipt_opening_pb2_grpc.add_ReceiptOpeningServiceServicer_to_server(Worker(salt), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, f"127.0.0.1:{port}"


async def record(billing: RunningBilling, *events: UsageEvent) -> None:
    async with grpc.aio.insecure_channel(billing.listen) as channel:
        stub = usage_pb2_grpc.UsageServiceStub(channel)
        request = usage_pb2.RecordUsageRequest(events=map(event_message, events))
        assert {each.status for each in (await stub.RecordUsage(request)).outcomes} == {
            usage_pb2.RECORD_STATUS_ACCEPTED
        }


async def run(*words: Any, of: Any = app) -> Any:
    return await asyncio.to_thread(CliRunner().invoke, of, [str(word) for word in words])


async def test_a_receipt_is_had_shown_and_checked(billing: RunningBilling, tmp_path: Path) -> None:
    event, prompt = proven(event_of("r1"), [("host", 2), ("computed", 2)], tail=3)
    await record(billing, event)
    server, worker = await worker_with(salt_of(event))
    file = tmp_path / "r1.json"
    where = ("--address", billing.listen, "--worker", worker)
    got = await run("get", "r1", "--out", file, *where)
    assert got.exit_code == 0
    assert "position 1, by key" in got.stdout
    piped = await run("get", "r1", *where)
    assert (
        json.loads(piped.stdout_bytes)["receipt"]["event"]
        == json.loads(file.read_bytes())["receipt"]["event"]
    )
    sealed = await run("get", "r1", "--sealed", "--address", billing.listen)
    assert "opening" not in json.loads(sealed.stdout_bytes)

    tokens, book = tmp_path / "tokens.json", tmp_path / "book.toml"
    tokens.write_text(json.dumps({"token_ids": prompt}))
    public = tmp_path / "ledger.pem"
    await run("key", "--out", public, "--address", billing.listen, of=usage_app)
    proof = ("--tokens", tokens, "--public-key", public, "--ledger", billing.listen)
    checked = await run("verify", file, *proof)
    assert checked.exit_code == 0, checked.stdout
    assert "The receipt holds." in checked.stdout
    for check in ("form", "signature", "entry", "tokens", "ledger"):
        assert check in checked.stdout
    book.write_text((await run("show", file, "--json")).stdout)  # no book at all
    assert (await run("verify", file, "--book", book)).exit_code == 2
    shown = await run("show", file)
    for text in (
        "request",
        "r1",
        "hit",
        "miss",
        "output",
        "0-1",
        "2-3",
        "1-128",
        "host",
        "computed",
    ):
        assert text in shown.stdout
    await server.stop(None)


async def test_what_cannot_be_had_is_said_and_nothing_is_written(
    billing: RunningBilling, tmp_path: Path
) -> None:
    event, _ = proven(event_of("r1"), [("computed", 2)])
    await record(billing, event, event_of("r2"))
    out = tmp_path / "out.json"
    server, worker = await worker_with(bytes(32))
    at = ("--address", billing.listen)
    for words, says in (
        (("get", "nobody", *at), "EVENT_UNKNOWN"),
        (("get", "r1", "--address", "127.0.0.1:1"), "BILLING_UNREACHABLE"),
        (("get", "r1", *at, "--worker", "127.0.0.1:1"), "WORKER_UNREACHABLE"),
        (("get", "r1", *at, "--worker", worker), "OTHER_SECRET"),
    ):
        done = await run(*words, "--out", out)
        assert (done.exit_code, says in done.stderr) == (1, True), done.stderr
        assert not out.exists()
    # There is nothing to open, and so no worker is asked.
    assert (await run("get", "r2", *at, "--worker", "127.0.0.1:1", "--out", out)).exit_code == 0
    await server.stop(None)


async def test_a_receipt_that_was_changed_is_not_shown_as_one_that_holds(
    billing: RunningBilling, tmp_path: Path
) -> None:
    await record(billing, event_of("r1"))
    file, other = tmp_path / "r1.json", tmp_path / "other.json"
    await run("get", "r1", "--out", file, "--sealed", "--address", billing.listen)
    raw = file.read_bytes()
    other.write_bytes(raw.replace(b'"owed":"0.', b'"owed":"1.'))
    for words in (("show", other), ("show", other, "--json"), ("verify", other)):
        assert (await run(*words)).exit_code == 1
    found = json.loads((await run("verify", other, "--json")).stdout)
    assert not found["verified"]
    failed = {
        each["check"]: each["where"] for each in found["checks"] if each["result"] == "failed"
    }
    assert failed == {"signature": "owed", "corrections": "owed"}
    other.write_bytes(b"no receipt")
    for words in (("show", other), ("verify", other), ("seal", other, "--out", file)):
        assert (await run(*words)).exit_code == 1
    assert file.read_bytes() == raw
    assert (await run("verify", tmp_path / "none.json")).exit_code == 2


@pytest.mark.parametrize("text", ["", "{}", '["1"]', "[1.5]", "[true]", '{"token_ids":7}', "[1"])
async def test_tokens_that_are_none_are_a_wrong_command_line(tmp_path: Path, text: str) -> None:
    file, tokens = tmp_path / "r.json", tmp_path / "tokens.json"
    file.write_bytes(b"{}\n")
    tokens.write_text(text)
    assert (await run("verify", file, "--tokens", tokens)).exit_code == 2


async def test_a_ledger_that_says_something_else_is_found(
    billing: RunningBilling, tmp_path: Path
) -> None:
    other = await start_billing(
        BillingSettings(
            listen="127.0.0.1:0",
            data_directory=tmp_path / "other",
            security=SecuritySettings(development=True),
        ),
        lambda: NOW,
    )
    await record(billing, event_of("r0"), event_of("r1"))
    file = tmp_path / "r1.json"
    await run("get", "r1", "--out", file, "--address", billing.listen)
    assert (await run("verify", file, "--ledger", billing.listen)).exit_code == 0

    async def said() -> tuple[str, str]:
        done = await run("verify", file, "--ledger", other.listen, "--json")
        if done.exit_code == 1 and not done.stdout:
            return "", done.stderr
        (found,) = [e for e in json.loads(done.stdout)["checks"] if e["check"] == "ledger"]
        return found["result"], found["where"]

    assert "EVENT_UNKNOWN" in (await said())[1]
    await record(other, event_of("r1"))
    assert await said() == ("failed", "entry.position")
    await other.drain()
