"""`kvtier usage verify`, `checkpoint` and `key`: what proves the ledger, asked from the service or
found out from a copy of its file alone.
"""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
)

from billing.checkpoint_check import Kept, KeptEntry, Trust
from billing.client import call_billing
from billing.command_line import DEFAULT_ADDRESS, Address, JsonOption, console, print_json
from billing.command_values import option_public_key
from billing.errors import BillingError
from billing.ledger_file import verify_file
from billing.receipt_check import check_receipt
from billing.receipt_files import read_receipt
from billing.statement import verification_data
from billing.tables import show_verification
from billing.wire import verification_message
from billing.wire_proof import (
    checkpoint_data,
    kept_entry_message,
    kept_from_data,
    kept_message,
    kept_of,
)
from kvtier.v1 import usage_pb2

__all__ = ["add_proof_commands"]

VERIFY_SECONDS_MAX = 3_600.0

Checkpoints = Annotated[
    list[Path] | None,
    typer.Option(
        "--checkpoint", help="A checkpoint that was kept elsewhere; may be given again and again."
    ),
]
PublicKeyFile = Annotated[
    Path | None, typer.Option("--public-key", help="The ledger's public key, as `key` printed it.")
]
Receipts = Annotated[
    list[Path] | None,
    typer.Option(
        "--receipt", help="A receipt: its entry must still be there; may be given again and again."
    ),
]
LedgerFile = Annotated[
    Path | None,
    typer.Option("--file", help="A copy of ledger.sqlite: asks no service."),
]
Out = Annotated[Path | None, typer.Option("--out", help="Write it to this file.")]


def add_proof_commands(app: typer.Typer) -> None:
    app.command(short_help="Prove that the ledger holds.")(verify)
    app.command(short_help="A signed statement of the ledger, to keep elsewhere.")(checkpoint)
    app.command(short_help="The public key of the ledger's checkpoints.")(key)


def verify(
    checkpoint: Checkpoints = None,
    receipt: Receipts = None,
    public_key: PublicKeyFile = None,
    file: LedgerFile = None,
    json_: JsonOption = False,
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """Walks the ledger's hash chain and its checkpoints and recomputes every amount; exit status 1
    when it breaks, and says where."""
    trust = Trust(
        tuple(_kept(path) for path in checkpoint or ()),
        option_public_key(public_key) if public_key is not None else None,
        tuple(_kept_entry(path) for path in receipt or ()),
    )
    found = _verified_file(file, trust) if file is not None else _asked(trust, address)
    data = verification_data(found)
    if json_:
        print_json(data)
    else:
        show_verification(console(), data)
    if not data["verified"]:
        raise typer.Exit(1)


def checkpoint(
    out: Out = None, json_: JsonOption = False, address: Address = DEFAULT_ADDRESS
) -> None:
    """Has the ledger sign how far it is. Kept elsewhere, it proves later that nothing it covers was
    changed or cut off: `kvtier usage verify --checkpoint FILE`."""
    request = usage_pb2.GetCheckpointRequest()
    response = call_billing(address, lambda stub, wait: stub.GetCheckpoint(request, timeout=wait))
    data = checkpoint_data(kept_of(response.checkpoint))
    if out is not None:
        _write(out, json.dumps(data, indent=2) + "\n")
    if json_ or out is None:
        print_json(data)
    else:
        console().print(
            f"checkpoint {data['number']}: {data['position']:,} entries, by key {data['key']},"
            f" in {out}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def key(
    rotate: Annotated[bool, typer.Option("--rotate", help="Make a new key that signs.")] = False,
    out: Out = None,
    json_: JsonOption = False,
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """The public key that checks checkpoints, in PEM; all keys there were with --json."""
    if rotate:
        request = usage_pb2.RotateLedgerKeyRequest()
        call_billing(address, lambda stub, wait: stub.RotateLedgerKey(request, timeout=wait))
    asked = usage_pb2.GetLedgerKeysRequest()
    response = call_billing(address, lambda stub, wait: stub.GetLedgerKeys(asked, timeout=wait))
    pem = _pem(response.keys[-1].public_key)
    if out is not None:
        _write(out, pem)
    if json_:
        print_json({"keys": _keys_data(response.keys)})
    elif out is None:
        print(pem, end="")


def _asked(trust: Trust, address: str) -> usage_pb2.VerifyLedgerResponse:
    request = usage_pb2.VerifyLedgerRequest(
        kept_checkpoints=map(kept_message, trust.kept),
        trusted_public_key=trust.public_key or b"",
        kept_entries=map(kept_entry_message, trust.entries),
    )
    found: usage_pb2.VerifyLedgerResponse = call_billing(
        address,
        lambda stub, wait: stub.VerifyLedger(request, timeout=wait),
        VERIFY_SECONDS_MAX,
    )
    return found


def _verified_file(path: Path, trust: Trust) -> usage_pb2.VerifyLedgerResponse:
    try:
        return verification_message(verify_file(path, trust))
    except BillingError as error:
        typer.echo(f"kvtier usage: {error.reason}: {error}", err=True)
        raise typer.Exit(1) from None


def _kept(path: Path) -> Kept:
    try:
        data = json.loads(path.read_text("utf-8"))
        return kept_from_data(data if isinstance(data, dict) else {})
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{path}: {error}", param_hint="--checkpoint") from None


def _kept_entry(path: Path) -> KeptEntry:
    report = check_receipt(read_receipt(path))
    if report.receipt is None or not report.verified:
        raise typer.BadParameter(
            f"{path} does not hold itself; see kvtier receipt verify {path}", param_hint="--receipt"
        )
    said = report.receipt
    return KeptEntry(
        said["ledger"],
        said["entry"]["position"],
        bytes.fromhex(said["entry"]["hash"]),
        said["event"]["request_id"],
        bytes.fromhex(said["keys"][-1]["public_key"]),
    )


def _pem(public_key: bytes) -> str:
    loaded = Ed25519PublicKey.from_public_bytes(public_key)
    return loaded.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def _keys_data(keys: Sequence[usage_pb2.LedgerKey]) -> list[dict[str, Any]]:
    return [
        {
            "number": each.number,
            "key": each.key_id,
            "public_key": base64.b64encode(each.public_key).decode(),
            "create_time": each.create_time.ToJsonString(),
        }
        for each in keys
    ]


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise typer.BadParameter(f"{path}: {error.strerror}", param_hint="--out") from None
