"""What every service is told about where it listens and how it is reached."""

import os
from pathlib import Path

from pydantic import PositiveInt, model_validator

from kvtier.access import CallLimits
from kvtier.settings import OptionalListenAddress, SettingsModel
from kvtier.tls import SecuritySettings

__all__ = ["CallLimitSettings", "ServiceSettings", "check_socket_path"]

SOCKET_PATH_BYTES_MAX = 107
"""The kernel's limit for a Unix socket's address, less its closing zero."""


class CallLimitSettings(SettingsModel):
    """Calls being served at a time. A service with other limits puts them beside these."""

    calls_max: PositiveInt = 4096
    calls_per_session_max: PositiveInt = 1024


class ServiceSettings(SettingsModel):
    """Base of a service's settings. A service gives `listen` its own default."""

    listen: OptionalListenAddress = ""
    """Empty: the Unix socket alone."""
    unix_socket: Path | None = None
    """A listener for clients of the same user on this machine, in clear."""
    security: SecuritySettings = SecuritySettings()
    limits: CallLimitSettings = CallLimitSettings()

    @model_validator(mode="after")
    def _listens(self) -> "ServiceSettings":
        if not self.listen and self.unix_socket is None:
            raise ValueError("listen: write it as HOST:PORT, or set unix_socket")
        if self.unix_socket is not None:
            check_socket_path("unix_socket", self.unix_socket.absolute())
        return self

    @property
    def addresses(self) -> list[str]:
        """What gRPC listens on."""
        unix = [f"unix:{self.unix_socket.absolute()}"] if self.unix_socket else []
        return [self.listen, *unix] if self.listen else unix

    @property
    def call_limits(self) -> CallLimits:
        """As the gate takes them."""
        return CallLimits(self.limits.calls_max, self.limits.calls_per_session_max)


def check_socket_path(name: str, path: Path) -> None:
    """Raises ValueError for one that the kernel would refuse."""
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        raise ValueError(
            f"{name}: {path} is longer than the {SOCKET_PATH_BYTES_MAX} bytes a Unix socket"
            " may have; set a shorter one, for example /run/kvtier/arena.sock"
        )
