"""`kvtier certificates`: an authority of one's own and what it issues, where there is no other.

For one machine, a compose file and for trying: whoever has an authority uses that. Running it again
changes nothing but certificates that are about to end or are for other names. `--json` prints one
object.
"""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from cryptography import x509
from rich.console import Console
from rich.table import Table

from kvtier.certificates import (
    CertificateAuthority,
    alternative_names,
    client_names,
    server_names,
)
from kvtier.errors import KvtierError

__all__ = ["app"]

Kind = tuple[Callable[..., Path], Callable[[Sequence[str]], list[x509.GeneralName]]]
"""What issues a certificate, and what its words become in it."""

app = typer.Typer(no_args_is_help=True, help="An authority for TLS, where there is no other.")


@app.callback()
def certificates() -> None:
    """An authority for TLS, where there is no other."""


@app.command()
def make(
    directory: Annotated[Path, typer.Argument(help="Of the authority; made when missing.")],
    server: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=HOST,...", help="A service's, for its host names and addresses."
        ),
    ] = None,
    client: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=URI,...", help="A caller's, for its roles (kvtier://engine)."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where certificates go, and ca.pem; without a word to the authority's."),
    ] = None,
    days: Annotated[float, typer.Option(min=0.01, help="How long they hold.")] = 365,
    renew_days: Annotated[
        float, typer.Option(min=0, help="One that ends within so many days is made anew.")
    ] = 30,
    json_output: Annotated[
        bool, typer.Option("--json", help="One JSON object on standard output.")
    ] = False,
) -> None:
    """Make the authority, and certificates that are missing, about to end or for other names."""
    try:
        authority = CertificateAuthority(directory, issued=out)
        servers: Kind = (authority.issue_server, server_names)
        clients: Kind = (authority.issue_client, client_names)
        wanted = [(word, servers) for word in server or ()]
        wanted += [(word, clients) for word in client or ()]
        rows = [_made(authority, word, kind, days, renew_days) for word, kind in wanted]
    except (KvtierError, OSError, ValueError) as error:
        typer.echo(f"kvtier certificates: {error}", err=True)
        raise typer.Exit(1) from None
    if json_output:
        keys = ("name", "good_until", "done")
        listed = [dict(zip(keys, row, strict=True)) for row in rows]
        print(json.dumps({"directory": str(out or directory), "certificates": listed}, indent=2))
        return
    table = Table(title=str(out or directory), title_justify="left", box=None, pad_edge=False)
    for name in ("certificate", "holds until", "done"):
        table.add_column(name)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _made(
    authority: CertificateAuthority, word: str, kind: Kind, days: float, renew_days: float
) -> tuple[str, str, str]:
    """Raises KvtierError, OSError, ValueError."""
    name, equals, names = word.partition("=")
    if not (equals and name and names) or "/" in name or name == "ca":
        raise ValueError(f"{word!r} is not NAME=HOST,... or NAME=URI,...")
    issue, general_names = kind
    wanted = names.split(",")
    there = authority.find(name)
    done = "made" if there is None else "renewed"
    if there is not None and alternative_names(there) == set(general_names(wanted)):
        until = there.not_valid_after_utc
        if until > datetime.now(UTC) + timedelta(days=renew_days):
            return name, until.isoformat(), "kept"
    issue(name, wanted, days, renew=True)
    there = authority.find(name)
    assert there is not None, "what was just written is not what was meant"
    return name, there.not_valid_after_utc.isoformat(), done
