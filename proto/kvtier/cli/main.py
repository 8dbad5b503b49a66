"""Entry of the `kvtier` command: its own commands, and those that rooms contribute.

A room's commands are imported only when the command line names them, so `kvtier usage` starts
without torch and `kvtier --help` fast. Main thread only.
"""

import sys
from collections.abc import Sequence
from importlib.metadata import entry_points, version
from typing import Annotated

import typer

from kvtier.cli.channel import (
    CA_VARIABLE,
    CERTIFICATE_VARIABLE,
    KEY_VARIABLE,
    client_tls,
    use,
)
from kvtier.cli.demo.command import demo
from kvtier.cli.generate import chat, generate
from kvtier.cli.up import up

__all__ = ["main"]

ENTRY_POINTS = "kvtier.commands"

_HELP = {
    "bench": "Measure this machine, limits beside the figures.",
    "budget": "Balances and budgets: what tenants may spend.",
    "cache": "Look into the cache.",
    "keys": "API keys of the gateway.",
    "model": "Look at a checkpoint before it is served.",
    "receipt": "A request's bill, provable without any service.",
    "replay": "A recorded trace through the policies that serve.",
    "usage": "Reports, invoices and the ledger's proof.",
}


def _tell_version(wanted: bool) -> None:
    if wanted:
        print(f"kvtier {version('kvtier')}")
        raise typer.Exit


def build() -> typer.Typer:
    """The command tree; rooms' commands are loaded when `sys.argv` names them."""
    app = typer.Typer(
        name="kvtier",
        help="A tiered, disk-backed context cache service for LLM inference.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(kvtier)
    app.command(short_help="Start everything on this machine.")(up)
    app.command(short_help="The whole way, with a crash and the bill.")(demo)
    app.command(short_help="Complete one prompt; show usage and cost.")(generate)
    app.command(short_help="Talk to the model.")(chat)
    wanted = _command(sys.argv[1:])
    for entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda e: e.name):
        room = entry.load() if entry.name == wanted else typer.Typer()
        app.add_typer(room, name=entry.name, help=_HELP.get(entry.name))
    return app


def _command(words: Sequence[str]) -> str:
    """The command among `words`, past the options before it; empty when there is none."""
    rest = iter(words)
    for word in rest:
        if word in ("--ca", "--certificate", "--key"):
            next(rest, "")
        elif not word.startswith("-"):
            return word
    return ""


def kvtier(
    version_: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", is_eager=True, callback=_tell_version
        ),
    ] = False,
    ca: Annotated[
        str,
        typer.Option("--ca", help="Whom to believe: the services' CA.", envvar=CA_VARIABLE),
    ] = "",
    certificate: Annotated[
        str,
        typer.Option("--certificate", help="Who asks, to services.", envvar=CERTIFICATE_VARIABLE),
    ] = "",
    key: Annotated[
        str, typer.Option("--key", help="The certificate's key.", envvar=KEY_VARIABLE)
    ] = "",
) -> None:
    """A tiered, disk-backed context cache service for LLM inference."""
    use(client_tls(ca, certificate, key))


def main() -> None:
    """Runs the command line."""
    build()()


if __name__ == "__main__":
    main()
