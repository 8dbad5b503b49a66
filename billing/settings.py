"""The billing service's settings, described for people in `docs/settings.md`. Built at start."""

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr

from kvtier.service_settings import ServiceSettings
from kvtier.settings import OptionalListenAddress, Seconds, SettingsModel

__all__ = ["ENV_PREFIX", "BillingSettings", "BudgetSettings", "CheckpointSettings", "LogSettings"]

ENV_PREFIX = "KVTIER_BILLING_"


class LogSettings(SettingsModel):
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    style: Literal["text", "json"] = "text"


class CheckpointSettings(SettingsModel):
    entries: int = Field(default=10_000, ge=1, le=10_000_000)
    seconds: Seconds = 60.0
    accept_new_key: bool = False
    """Take a key that the last one did not vouch for."""


class BudgetSettings(SettingsModel):
    settle_seconds: Seconds = 900.0
    """How long behind a request's deadline its usage event is waited for."""


class BillingSettings(ServiceSettings):
    """Everything a billing process is told."""

    listen: OptionalListenAddress = "127.0.0.1:7431"
    data_directory: Path = Path(".kvtier/billing")
    database_url: SecretStr = SecretStr("")
    """Of a PostgreSQL that has the ledger; empty: a file of SQLite in the data directory."""
    price_book: Path | None = None
    """None: the example that ships with kvtier."""
    terms: Path | None = None
    """None: nobody has any."""
    metrics_listen: OptionalListenAddress = ""
    drain_seconds: float = Field(default=5.0, ge=0, le=600)
    checkpoints: CheckpointSettings = CheckpointSettings()
    budgets: BudgetSettings = BudgetSettings()
    log: LogSettings = LogSettings()
