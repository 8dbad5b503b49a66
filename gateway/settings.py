"""The gateway's settings, described for people in `docs/settings.md`. Built once at start."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ByteSize, Field, model_validator

from kvtier.settings import ListenAddress, OptionalListenAddress, Seconds, SettingsModel
from kvtier.tls import ClientTls

__all__ = [
    "ENV_PREFIX",
    "BillingSettings",
    "GatewaySettings",
    "LimitSettings",
    "LogSettings",
    "ServerTls",
]

ENV_PREFIX = "KVTIER_GATEWAY_"


def _split(value: Any) -> Any:
    """Environment and command line give one text: addresses separated by commas."""
    if isinstance(value, str):
        return tuple(each.strip() for each in value.split(",") if each.strip())
    return value


Address = Annotated[str, Field(pattern=r"^\S+:\S+$")]


def _pairs(value: Any) -> Any:
    """WORKER=CACHE, separated by commas."""
    if not isinstance(value, str):
        return value
    pairs = [pair.partition("=") for pair in _split(value)]
    if len({worker for worker, _, _ in pairs}) != len(pairs):
        raise ValueError("a worker is there twice")
    return {worker.strip(): cache.strip() for worker, _, cache in pairs}


class ServerTls(SettingsModel):
    """How the gateway is reached. Callers show API keys, and no certificate."""

    certificate_file: Path | None = None
    key_file: Path | None = None
    development: bool = False
    """Workers on loopback may be called in clear."""

    @model_validator(mode="after")
    def _both_or_none(self) -> "ServerTls":
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("security: set certificate_file and key_file, or neither")
        return self


class LimitSettings(SettingsModel):
    body_bytes_max: ByteSize = Field(default=ByteSize(8 << 20), ge=1024, le=15 << 20)
    """Less than what a worker takes in one message."""
    body_seconds_max: Seconds = 30.0
    requests_max: int = Field(default=1024, ge=1, le=65_536)
    requests_per_key_max: int = Field(default=256, ge=1, le=65_536)


class BillingSettings(SettingsModel):
    """Who is asked for balances; empty: nobody, and there is no such path."""

    address: Annotated[str, Field(pattern=r"^(\S+:\S+)?$")] = ""


class LogSettings(SettingsModel):
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    style: Literal["text", "json"] = "text"


class GatewaySettings(SettingsModel):
    """Everything a gateway process is told."""

    listen: ListenAddress = "127.0.0.1:7441"
    """HTTP."""
    grpc_listen: OptionalListenAddress = "127.0.0.1:7442"
    """Empty: none."""
    security: ServerTls = ServerTls()
    data_directory: Path = Path(".kvtier/gateway")
    keys_file: Path | None = None
    """None: `keys.json` in the data directory."""
    workers: Annotated[tuple[Address, ...], BeforeValidator(_split), Field(max_length=256)] = (
        "127.0.0.1:7421",
    )
    caches: Annotated[dict[Address, Address], BeforeValidator(_pairs)] = Field(default_factory=dict)
    """Of each worker, its cache service: whose events say where prefixes are warm."""
    billing: BillingSettings = BillingSettings()
    client: ClientTls = ClientTls()
    request_seconds_max: Seconds = 600.0
    heartbeat_seconds: Seconds = 15.0
    stall_seconds: Seconds = 60.0
    drain_seconds: float = Field(default=10.0, ge=0, le=600)
    metrics_listen: OptionalListenAddress = ""
    limits: LimitSettings = LimitSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _check(self) -> "GatewaySettings":
        if not self.workers:
            raise ValueError("workers: name at least one")
        if len(set(self.workers)) != len(self.workers):
            raise ValueError("workers: an address is there twice")
        strangers = self.caches.keys() - set(self.workers)
        if strangers:
            raise ValueError(f"caches: {min(strangers)} is none of workers")
        return self

    @property
    def keys_path(self) -> Path:
        return self.keys_file or self.data_directory / "keys.json"
