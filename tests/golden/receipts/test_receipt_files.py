"""Receipts that were issued once hold for ever, and are written in the very same bytes.

`KVTIER_REWRITE_GOLDEN=1` writes the files anew; doing so needs a new format.
"""

import json
import os
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from billing.checkpoint import LedgerKey, public_bytes
from billing.correction import CorrectionAsk, CorrectionKind
from billing.ledger import Ledger
from billing.ledger_key import KEY_FILE, KeyFile
from billing.ledger_signer import LedgerSigner
from billing.ledger_sqlite import SqliteStore
from billing.meter import Submission
from billing.metrics import BillingMetrics
from billing.price_book_file import parse_price_book
from billing.receipt import file_bytes, signed_bytes
from billing.receipt_check import Given, Result, check_receipt
from billing.receipt_issue import receipt_of
from billing.usage import EndReason, StorageUse, TenantId, TokenCounts, UsageEvent
from tests.receipts import proven, receipt_file, salt_of

HERE = Path(__file__).parent
BOOKS = Path(__file__).parents[3] / "billing/books"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
NOW = 1_800_000_000_000_000_000
FILES = ("opened", "corrected", "bare")


def _event(name: str) -> UsageEvent:
    return UsageEvent(
        request_id=name,
        schema_version=1,
        tenant_id=TenantId("acme"),
        model="claude-sonnet-4-5-x",
        start_time_ns=NOW - 10**9,
        end_time_ns=NOW,
        end_reason=EndReason.STOP,
        tokens=TokenCounts(0, 0, 0, 0, 0, 0, 0, 17),
        node="node-1",
        client_request_id="ü",
        ttft_ns=5,
        project_id="search",
        user_id="",
    )


def _rewrite(directory: Path) -> None:
    directory.mkdir(exist_ok=True)
    pem = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (directory / KEY_FILE).write_bytes(pem)
    (directory / KEY_FILE).chmod(0o600)
    store = SqliteStore(directory)
    till = type("Till", (), {"store": store, "clock": type("Clock", (), {"now_ns": NOW})})
    book = parse_price_book((BOOKS / "anthropic.toml").read_text(), "book")
    signer = LedgerSigner(store.ledger_id, KeyFile(directory))
    till.ledger = ledger = Ledger(store, book, lambda: NOW, BillingMetrics(), signer)  # type: ignore[attr-defined]
    runs = [("gpu", 20), ("host", 2), ("ssd", 3), ("shared", 1), ("computed", 2)]
    opened, prompt = proven(_event("r1"), runs, tail=9, every=1)
    corrected, _ = proven(_event("r2"), runs)
    corrected = replace(corrected, lease_ids=("l1",), storage=StorageUse(host=7))
    bare = replace(_event("r3"), model="nobodys")
    ledger.record([Submission(each, b"") for each in (opened, corrected, bare)]).result(30)
    for number, amount in enumerate(("0.0001", "0.0002")):
        kind = CorrectionKind.CREDIT if number else CorrectionKind.CHARGE
        ask = CorrectionAsk(f"c{number}", kind, "r2", "sorry", "ann", Decimal(amount))
        ledger.correct(ask).result(30)
    for name, file in zip(("r1", "r2", "r3"), FILES, strict=True):
        opening = salt_of(opened) if file == "opened" else b""
        (HERE / f"{file}.json").write_bytes(receipt_file(till, name, opening))
    (HERE / "prompt.json").write_text(json.dumps(prompt) + "\n")
    ledger.close()
    store.close()


@pytest.mark.parametrize("name", FILES)
def test_a_receipt_holds_for_ever(name: str, tmp_path: Path) -> None:
    if os.environ.get("KVTIER_REWRITE_GOLDEN") and name == FILES[0]:
        _rewrite(tmp_path / "ledger")
    prompt = json.loads((HERE / "prompt.json").read_text()) if name == "opened" else None
    report = check_receipt((HERE / f"{name}.json").read_bytes(), Given(public_bytes(KEY), prompt))
    assert [each for each in report.findings if each.result is Result.FAILED] == []
    skipped = {each.check for each in report.findings if each.result is Result.SKIPPED}
    assert (
        skipped
        == {
            "opened": set(),
            "corrected": {"opening", "tokens"},
            "bare": {"blocks", "opening", "tokens"},
        }[name]
    )


@pytest.mark.parametrize("name", FILES)
def test_a_receipt_is_written_in_the_same_bytes(name: str) -> None:
    raw = (HERE / f"{name}.json").read_bytes()
    data = json.loads(raw)
    said = data["receipt"]
    keys = [
        LedgerKey(
            each["number"],
            bytes.fromhex(each["public_key"]),
            each["time_ns"],
            bytes.fromhex(each["signature"]),
        )
        for each in said["keys"]
    ]
    of_signing = ("format", "issued_time_ns", "key", "keys", "marks")
    draft = {part: value for part, value in said.items() if part not in of_signing}
    made = receipt_of(draft, keys, said["issued_time_ns"])
    opening = bytes.fromhex(data.get("opening", ""))
    assert file_bytes(made, KEY.sign(signed_bytes(made)), opening) == raw
