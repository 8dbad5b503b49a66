"""Channels of the command line to services on this or another machine.

Who calls is said once, before the command (`kvtier --ca FILE --certificate FILE --key FILE ...`) or
in the environment (KVTIER_CA, KVTIER_CERTIFICATE, KVTIER_KEY). A Unix socket and a service in
development on loopback need none of it.
"""

import os
import sys
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import grpc
from pydantic import ValidationError

from kvtier import channels
from kvtier.errors import KvtierError
from kvtier.tls import ClientTls, channel_credentials

__all__ = [
    "CA_VARIABLE",
    "CERTIFICATE_VARIABLE",
    "KEY_VARIABLE",
    "client_tls",
    "open_channel",
    "use",
]

CA_VARIABLE = "KVTIER_CA"
CERTIFICATE_VARIABLE = "KVTIER_CERTIFICATE"
KEY_VARIABLE = "KVTIER_KEY"

MISUSED = 2

_CHOSEN: ContextVar[ClientTls | None] = ContextVar("chosen", default=None)


def open_channel(address: str, options: Sequence[tuple[str, Any]] = ()) -> grpc.Channel:
    """A channel to HOST:PORT or unix:PATH; it connects with the first call.

    Ends the command with one line when certificate or key cannot be used.
    """
    try:
        credentials = channel_credentials(address, _chosen())
    except KvtierError as error:
        print(
            f"kvtier: {error.reason}: {error}"
            f" (--ca, --certificate, --key or {CA_VARIABLE}, {CERTIFICATE_VARIABLE},"
            f" {KEY_VARIABLE})",
            file=sys.stderr,
        )
        raise SystemExit(MISUSED) from None
    return channels.open_channel(address, credentials, options)


def client_tls(ca: str, certificate: str, key: str) -> ClientTls:
    """From what was given; empty is not given. Ends the command when it is half of a whole."""
    files = {"ca_file": ca, "certificate_file": certificate, "key_file": key}
    try:
        return ClientTls(**{name: Path(path) for name, path in files.items() if path})
    except ValidationError:
        print(
            "kvtier: give all of --ca, --certificate and --key, or none"
            f" (or {CA_VARIABLE}, {CERTIFICATE_VARIABLE}, {KEY_VARIABLE})",
            file=sys.stderr,
        )
        raise SystemExit(MISUSED) from None


def use(tls: ClientTls) -> None:
    """What every channel of this command shows. Called once, before the command runs."""
    _CHOSEN.set(tls)


def _chosen() -> ClientTls:
    tls = _CHOSEN.get()
    if tls is not None:
        return tls
    names = (CA_VARIABLE, CERTIFICATE_VARIABLE, KEY_VARIABLE)
    return client_tls(*(os.environ.get(name, "") for name in names))
