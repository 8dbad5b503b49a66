"""`kvtier keys`: creates, lists, rotates and revokes API keys, in the gateway's file of keys.

A key's text is shown once, by the command that made it: the file has a digest. A gateway that uses
the file knows a change with its next request. `--json` prints one object.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from gateway.key_file import KeyFile
from gateway.keys import ApiKey, KeyRing, new_key, path_of, revoked, rotated
from kvtier.errors import KvtierError

__all__ = ["app"]

KEYS_FILE = Path(".kvtier/gateway/keys.json")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
OVERLAP_SECONDS_MAX = 366 * 86_400

File = Annotated[
    Path,
    typer.Option(
        "--file",
        envvar="KVTIER_GATEWAY_KEYS_FILE",
        help="The gateway's keys_file; made with the first key.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", help="As kvtier keys list shows it.")]

app = typer.Typer(no_args_is_help=True, help="API keys of the gateway.")


@app.command()
def create(
    organisation: Annotated[
        str, typer.Option(help="Who pays; the worker's setting tenants must grant it.")
    ],
    project: Annotated[str, typer.Option(help="Within the organisation.")] = "default",
    user: Annotated[str, typer.Option(help="The one user that asks with it; empty: any.")] = "",
    name: Annotated[str, typer.Option(help="For people: whose it is, or what for.")] = "",
    service_class: Annotated[
        list[str] | None,
        typer.Option(
            help="What requests may be charged as (service_tier); the first is what they are"
            " without a word. May be repeated."
        ),
    ] = None,
    file: File = KEYS_FILE,
    json_output: Json = False,
) -> None:
    """Make a key, and show it this one time."""

    def make(ring: KeyRing) -> tuple[ApiKey, tuple[ApiKey, str]]:
        path = path_of(organisation, project, user)
        key, text = new_key(name, path, service_class or (), int(time.time()))
        return key, (key, text)

    key, text = _change(file, make)
    _tell_secret(key, text, json_output)


@app.command("list")
def list_(file: File = KEYS_FILE, json_output: Json = False) -> None:
    """All keys, revoked ones too; never what opens them."""
    try:
        ring = KeyFile(file).read()
    except KvtierError as error:
        raise _failed(error) from None
    now = time.time()
    rows = [_fields(key, now) for key in sorted(ring.keys.values(), key=lambda k: k.created_at)]
    if json_output:
        print(json.dumps({"file": str(file), "keys": rows}, ensure_ascii=False))
        return
    if not rows:
        print(f"no keys in {file}; make one: kvtier keys create --organisation NAME")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("key id", "of", "name", "created", "state", "classes"):
        table.add_column(title, overflow="fold", no_wrap=title in ("key id", "created"))
    for row in rows:
        classes = ", ".join(row["service_classes"])
        table.add_row(
            row["key_id"], row["path"], row["name"], row["created"], row["state"], classes
        )
    Console().print(table, markup=False)


@app.command()
def rotate(
    key_id: KeyId,
    overlap: Annotated[
        str,
        typer.Option(help="How long the old text works still: 0, 30m, 24h, 7d."),
    ] = "24h",
    file: File = KEYS_FILE,
    json_output: Json = False,
) -> None:
    """Give a key another text, and show it this one time."""
    seconds = _seconds(overlap)

    def make(ring: KeyRing) -> tuple[ApiKey, tuple[ApiKey, str]]:
        key, text = rotated(ring.of(key_id), seconds, int(time.time()))
        return key, (key, text)

    key, text = _change(file, make)
    _tell_secret(key, text, json_output)


@app.command()
def revoke(key_id: KeyId, file: File = KEYS_FILE, json_output: Json = False) -> None:
    """End a key: from the next request on it opens nothing."""

    def make(ring: KeyRing) -> tuple[ApiKey, ApiKey]:
        key = revoked(ring.of(key_id), int(time.time()))
        return key, key

    key = _change(file, make)
    if json_output:
        print(json.dumps(_fields(key, time.time()), ensure_ascii=False))
    else:
        print(f"revoked {key.key_id} ({key.path})")


def _change(file: Path, make: Callable[[KeyRing], tuple[ApiKey, Any]]) -> Any:
    try:
        return KeyFile(file).change(make)
    except KvtierError as error:
        raise _failed(error) from None


def _failed(error: KvtierError) -> typer.Exit:
    typer.echo(f"kvtier keys: {error.reason}: {error}", err=True)
    return typer.Exit(1)


def _tell_secret(key: ApiKey, text: str, json_output: bool) -> None:
    if json_output:
        print(json.dumps({**_fields(key, time.time()), "api_key": text}, ensure_ascii=False))
        return
    print(text)
    console = Console(stderr=True, highlight=False)
    console.print(
        f"key {key.key_id} of {key.path}. Keep the text above: it is shown this once and kept"
        " nowhere.",
        markup=False,
        soft_wrap=True,
    )


def _fields(key: ApiKey, now: float) -> dict[str, Any]:
    ends = [each.expires_at for each in key.secrets if each.valid(now) and each.expires_at]
    state = "valid" if key.valid(now) else "ended"
    if key.revoked_at is not None:
        state = f"revoked {_time(key.revoked_at)}"
    elif ends:
        state = f"valid; an old text until {_time(max(ends))}"
    return {
        "key_id": key.key_id,
        "path": str(key.path),
        "name": key.name,
        "created": _time(key.created_at),
        "state": state,
        "valid": key.valid(now),
        "service_classes": list(key.service_classes),
        "secret_count": sum(each.valid(now) for each in key.secrets),
    }


def _time(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _seconds(text: str) -> int:
    number, unit = (text[:-1], text[-1:]) if text[-1:] in _UNITS else (text, "s")
    if not number.isascii() or not number.isdigit() or int(number) > OVERLAP_SECONDS_MAX:
        raise typer.BadParameter(f"{text}: write 0, 30m, 24h or 7d", param_hint="--overlap")
    seconds = int(number) * _UNITS[unit]
    if seconds > OVERLAP_SECONDS_MAX:
        raise typer.BadParameter(f"{text}: at most 366d", param_hint="--overlap")
    return seconds


if __name__ == "__main__":
    app()
