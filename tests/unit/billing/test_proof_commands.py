"""An auditor keeps a checkpoint and the public key, and checks a copy with nothing else."""

import asyncio
import json
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner

from billing.commands import app
from billing.receipt_commands import app as receipt_app
from billing.server import RunningBilling, start_billing
from billing.settings import BillingSettings
from kvtier.tls import SecuritySettings
from kvtier.v1 import usage_pb2 as pb
from kvtier.v1 import usage_pb2_grpc
from tests.roll_up import ROLL_UP

NOW = 1_755_000_000 * 10**9


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


def _event(number: int) -> pb.UsageEvent:
    tokens = pb.TokenUsage(prompt_tokens=9, miss_tokens=9, completion_tokens=number)
    event = pb.UsageEvent(
        request_id=f"r{number}",
        schema_version=1,
        tenant_id="acme",
        model="demo",
        end_reason=pb.END_REASON_STOP,
        tokens=tokens,
    )
    event.start_time.FromNanoseconds(NOW - 5)
    event.end_time.FromNanoseconds(NOW)
    return event


async def _record(billing: RunningBilling, *numbers: int) -> None:
    async with grpc.aio.insecure_channel(billing.listen) as channel:
        stub = usage_pb2_grpc.UsageServiceStub(channel)
        await stub.RecordUsage(pb.RecordUsageRequest(events=map(_event, numbers)))


async def _run(billing: RunningBilling, *arguments: str) -> Any:
    words = [*arguments, "--address", billing.listen]
    return await asyncio.to_thread(CliRunner().invoke, app, words)


async def test_a_copy_is_verified_offline_with_the_public_key_and_a_checkpoint_alone(
    billing: RunningBilling, tmp_path: Path
) -> None:
    await _record(billing, 1, 2, 3)
    kept, public = tmp_path / "kept.json", tmp_path / "public.pem"
    said = await _run(billing, "checkpoint", "--out", str(kept))
    assert "3 entries" in said.stdout
    assert (await _run(billing, "key", "--out", str(public))).exit_code == 0
    assert "BEGIN PUBLIC KEY" in public.read_text()
    proof = ("--checkpoint", str(kept), "--public-key", str(public))
    assert (await _run(billing, "verify", *proof)).exit_code == 0
    await billing.drain()

    copy = tmp_path / "copy.sqlite"
    shutil.copy(tmp_path / "billing/ledger.sqlite", copy)
    before = copy.read_bytes()
    found = json.loads(
        CliRunner().invoke(app, ["verify", "--file", str(copy), *proof, "--json"]).stdout
    )
    assert (found["verified"], found["postings"], found["first_broken"]) == (True, 9, None)
    assert found["checkpoints"] == 1
    assert copy.read_bytes() == before

    with closing(sqlite3.connect(copy)) as connection:
        triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
        made = triggers.fetchall()
        for name, _ in made:
            connection.execute(f"DROP TRIGGER {name}")
        for table in ("postings", "entries", "checkpoints"):
            connection.execute(f"DELETE FROM {table} WHERE position > 1")
        for statement in ROLL_UP:
            connection.execute(statement)
        for _, sql in made:
            connection.execute(sql)
        connection.commit()
    alone = CliRunner().invoke(app, ["verify", "--file", str(copy)])
    assert alone.exit_code == 0  # what is left agrees with itself
    cut = CliRunner().invoke(app, ["verify", "--file", str(copy), *proof, "--json"])
    assert (cut.exit_code, json.loads(cut.stdout)["first_broken"]) == (1, 2)


async def test_a_new_key_is_shown_and_the_old_one_still_proves(
    billing: RunningBilling, tmp_path: Path
) -> None:
    await _record(billing, 1)
    old = tmp_path / "old.pem"
    await _run(billing, "key", "--out", str(old))
    kept = tmp_path / "kept.json"
    await _run(billing, "checkpoint", "--out", str(kept))
    rotated = await _run(billing, "key", "--rotate")
    assert "BEGIN PUBLIC KEY" in rotated.stdout
    assert rotated.stdout != old.read_text()
    keys = json.loads((await _run(billing, "key", "--json")).stdout)["keys"]
    assert [each["number"] for each in keys] == [1, 2]
    await _record(billing, 2)
    after = json.loads((await _run(billing, "checkpoint", "--json")).stdout)
    assert (after["key"], after["position"]) == (keys[1]["key"], 2)
    proof = ("--checkpoint", str(kept), "--public-key", str(old))
    assert (await _run(billing, "verify", *proof)).exit_code == 0


async def test_the_key_of_another_ledger_proves_nothing(
    billing: RunningBilling, tmp_path: Path
) -> None:
    settings = BillingSettings(
        listen="127.0.0.1:0",
        data_directory=tmp_path / "other",
        security=SecuritySettings(development=True),
    )
    other = await start_billing(settings, lambda: NOW)
    public, kept = tmp_path / "public.pem", tmp_path / "kept.json"
    await _run(other, "key", "--out", str(public))
    await _run(other, "checkpoint", "--out", str(kept))
    await other.drain()
    refused = await _run(billing, "verify", "--public-key", str(public))
    assert (refused.exit_code, "none of this ledger's" in refused.stdout) == (1, True)
    refused = await _run(billing, "verify", "--checkpoint", str(kept), "--json")
    assert refused.exit_code == 1
    assert json.loads(refused.stdout)["first_broken"] == 0


async def test_a_bill_is_put_right_once_and_shown_with_its_reason(billing: RunningBilling) -> None:
    await _record(billing, 1, 2)
    words = ("correct", "r1", "--credit", "0.000001", "--reason", "late", "--id", "c1")
    first = await _run(billing, *words, "--operator", "ann", "--json")
    data = json.loads(first.stdout)
    assert (data["amount"], data["kind"], data["already_there"]) == ("-0.000001", "credit", False)
    assert json.loads((await _run(billing, *words, "--json")).stdout)["already_there"] is True
    (entry,) = json.loads((await _run(billing, "show", "r1", "--json")).stdout)["entries"]
    assert [each["operator"] for each in entry["corrections"]] == ["ann"]
    assert "credit -0.000001 CNY (late)" in (await _run(billing, "show", "r1")).stdout
    invoice = await _run(billing, "invoice", "--tenant", "acme")
    assert "credit of r1: late (c1)" in invoice.stdout
    rows = (await _run(billing, "invoice", "--tenant", "acme", "--format", "csv")).stdout
    assert "r1,credit," in rows
    table = (await _run(billing, "report")).stdout
    assert "corrected" in table


@pytest.mark.parametrize(
    ("words", "exit_code", "says"),
    [
        (["r1", "--reason", "x"], 2, "say one of"),
        (["r1", "--reason", "x", "--credit", "1", "--reverse"], 2, "say one of"),
        (["r1", "--reason", "x", "--credit", "much"], 1, "CORRECTION_REFUSED"),
        (["r1", "--reason", "x", "--credit", "100"], 1, "CORRECTION_REFUSED"),
        (["r1", "--reason", "x", "--settle"], 1, "CORRECTION_REFUSED"),
        (["r9", "--reason", "x", "--reverse"], 1, "EVENT_UNKNOWN"),
    ],
)
async def test_a_correction_that_does_not_fit_says_why(
    billing: RunningBilling, words: list[str], exit_code: int, says: str
) -> None:
    await _record(billing, 1)
    refused = await _run(billing, "correct", *words)
    assert (refused.exit_code, says in refused.stderr) == (exit_code, True)
    assert json.loads((await _run(billing, "verify", "--json")).stdout)["entries"] == 1


async def test_receipts_that_were_kept_must_still_be_in_the_ledger(
    billing: RunningBilling, tmp_path: Path
) -> None:
    await _record(billing, 1, 2, 3)
    kept = tmp_path / "r2.json"
    words = ["get", "r2", "--out", str(kept), "--address", billing.listen]
    assert (await asyncio.to_thread(CliRunner().invoke, receipt_app, words)).exit_code == 0
    assert (await _run(billing, "verify", "--receipt", str(kept))).exit_code == 0
    await billing.drain()
    copy = tmp_path / "copy.sqlite"
    shutil.copy(tmp_path / "billing/ledger.sqlite", copy)
    proof = ["verify", "--file", str(copy), "--receipt", str(kept)]
    assert CliRunner().invoke(app, proof).exit_code == 0

    other = await start_billing(
        BillingSettings(
            listen="127.0.0.1:0",
            data_directory=tmp_path / "other",
            security=SecuritySettings(development=True),
        ),
        lambda: NOW,
    )
    await _record(other, 1, 2, 3)
    foreign = await _run(other, "verify", "--receipt", str(kept))
    assert (foreign.exit_code, "none of this ledger" in foreign.stdout) == (1, True)
    await other.drain()

    with closing(sqlite3.connect(copy)) as connection:
        triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
        made = triggers.fetchall()
        for name, _ in made:
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute("DELETE FROM checkpoints")
        for table in ("postings", "entries"):
            connection.execute(f"DELETE FROM {table} WHERE position > 1")
        for statement in ROLL_UP:
            connection.execute(statement)
        for _, sql in made:
            connection.execute(sql)
        connection.commit()
    assert CliRunner().invoke(app, proof[:3]).exit_code == 0  # what is left agrees with itself
    cut = CliRunner().invoke(app, [*proof, "--json"])
    found = json.loads(cut.stdout)
    assert (cut.exit_code, found["first_broken"]) == (1, 2)
    assert "the receipt of r2 has position 2" in found["problem"]

    kept.write_bytes(kept.read_bytes().replace(b'"owed":"0', b'"owed":"1'))
    assert CliRunner().invoke(app, proof).exit_code == 2
