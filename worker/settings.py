"""The worker's settings, described for people in `docs/settings.md`. Built once at start."""

import socket
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ByteSize, Field, PlainSerializer, model_validator

from kvtier.access import CallLimits
from kvtier.keys import DEFAULT_BLOCK_TOKENS
from kvtier.scopes import ScopePath
from kvtier.service_settings import CallLimitSettings, ServiceSettings
from kvtier.settings import OptionalAddress, OptionalListenAddress, Seconds, SettingsModel
from kvtier.tls import ClientTls
from worker.cache_session import TransportChoice
from worker.prefix_units import PARTS, PrefixUnits, UnitPart
from worker.prompt_proof import DIGESTS_MAX
from worker.tenants import Grant

__all__ = [
    "ENV_PREFIX",
    "BillingSettings",
    "BudgetSettings",
    "CacheSettings",
    "JournalSettings",
    "LogSettings",
    "PoolSettings",
    "QueueSettings",
    "WorkerCallLimitSettings",
    "WorkerSettings",
]

ENV_PREFIX = "KVTIER_WORKER_"
TTL_SECONDS_MAX = 366 * 24 * 3600
ADAPTERS_MAX = 32
"""Each that is in use is a session at the cache service."""


def _split(value: Any) -> Any:
    """Environment and command line give one text: names separated by commas."""
    if isinstance(value, str):
        return [name.strip() for name in value.split(",") if name.strip()]
    return value


def _parse(value: Any) -> Any:
    return Grant.parse(value) if isinstance(value, str) else value


TenantGrant = Annotated[Grant, BeforeValidator(_parse), PlainSerializer(str)]
"""A scope, written as a path, and what is granted in it."""


def _pairs(value: Any) -> Any:
    """Environment and command line give one text: NAME=VALUE, separated by commas."""
    if not isinstance(value, str):
        return value
    pairs = [pair.partition("=") for pair in _split(value)]
    if len({name for name, _, _ in pairs}) != len(pairs):
        raise ValueError("a name is there twice")
    return {name.strip(): what.strip() for name, _, what in pairs}


TtlClasses = Annotated[
    dict[
        Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,32}$")],
        Annotated[int, Field(ge=1, le=TTL_SECONDS_MAX)],
    ],
    BeforeValidator(_pairs),
    Field(max_length=16),
]


Adapters = Annotated[
    dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")], Path],
    BeforeValidator(_pairs),
    Field(max_length=ADAPTERS_MAX),
]


class PoolSettings(SettingsModel):
    """The page pool and how it is shared."""

    page_bytes: ByteSize = Field(default=ByteSize(256 << 20), ge=1)
    block_tokens: int = Field(default=DEFAULT_BLOCK_TOKENS, ge=1, le=4096)


class QueueSettings(SettingsModel):
    """How many requests at a time."""

    running_requests_max: int = Field(default=16, ge=1, le=4096)
    waiting_requests_max: int = Field(default=256, ge=1, le=65_536)
    age_limit_seconds: Seconds = 5.0
    encoding_requests_max: int = Field(default=64, ge=1, le=65_536)

    @property
    def requests_max(self) -> int:
        """In the worker at a time; more are refused by name of what is full."""
        return self.running_requests_max + self.waiting_requests_max + self.encoding_requests_max


class WorkerCallLimitSettings(CallLimitSettings):
    """0: as many as the queue needs; see `WorkerSettings.call_limits`."""

    calls_max: int = Field(default=0, ge=0)
    calls_per_session_max: int = Field(default=0, ge=0)


class CacheSettings(SettingsModel):
    """The cache service; without an address the worker keeps blocks in its own pages only."""

    address: OptionalAddress = ""
    transport: TransportChoice = "auto"
    load_timeout_seconds: Seconds = 2.0
    prefix_unit: Literal["every_block", "deepseek"] = "every_block"
    prefix_unit_parts: Annotated[
        tuple[UnitPart, ...], BeforeValidator(_split), Field(min_length=1)
    ] = PARTS
    prefix_unit_interval_tokens: int = Field(default=4096, ge=1, le=1 << 30)
    ttl_classes: TtlClasses = Field(default_factory=dict)
    """Names that requests may choose, and seconds."""

    @property
    def units(self) -> PrefixUnits:
        return PrefixUnits(
            self.prefix_unit == "deepseek",
            frozenset(self.prefix_unit_parts),
            self.prefix_unit_interval_tokens,
        )


class BillingSettings(SettingsModel):
    """Where usage events go; without an address they stay in the journal."""

    address: OptionalAddress = ""
    call_timeout_seconds: Seconds = 10.0
    backoff_seconds_max: Seconds = 30.0


class BudgetSettings(SettingsModel):
    """Whether billing is asked before a request is admitted."""

    enforce: bool = False
    timeout_seconds: Seconds = 2.0
    when_unavailable: Literal["refuse", "admit"] = "refuse"
    allowance_requests: int = Field(default=100, ge=1, le=1_000_000)
    """What is admitted without billing's word, since it last answered."""
    allowance_tokens: int = Field(default=1_000_000, ge=1, le=10**12)


class JournalSettings(SettingsModel):
    capacity_bytes: ByteSize = Field(default=ByteSize(1 << 30), ge=1 << 20)
    proof_digests_max: int = Field(default=0, ge=0, le=DIGESTS_MAX)
    """Digests of a prompt in its event, beside those where its runs end."""


class LogSettings(SettingsModel):
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    style: Literal["text", "json"] = "text"


class WorkerSettings(ServiceSettings):
    """Everything a worker process is told."""

    model: Path
    """A Hugging Face checkpoint's directory."""
    adapter: Path | None = None
    """A LoRA adapter's directory, merged into the checkpoint at start."""
    adapters: Adapters = Field(default_factory=dict)
    """LoRA adapters' directories by the names that requests call them, added at run time."""
    adapter_bytes_max: ByteSize = Field(default=ByteSize(1 << 30), ge=0)
    """Memory for all of `adapters`."""
    listen: OptionalListenAddress = "127.0.0.1:7421"
    node: str = Field(default_factory=socket.gethostname, min_length=1, max_length=128)
    tenants: Annotated[tuple[TenantGrant, ...], BeforeValidator(_split)] = (
        Grant(ScopePath("default")),
    )
    data_directory: Path = Path(".kvtier/worker")
    scope_secret_file: Path | None = None
    public_prefix_directory: Path | None = None
    organisation_prefix_directory: Path | None = None
    threads: int = Field(default=0, ge=0, le=1024)
    """Of torch; 0: torch's own choice."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "cpu"
    rope_regime: Literal["short", "long"] = "short"
    """Of a checkpoint whose RoPE has two, chosen by length."""
    step_tokens: int = Field(default=512, ge=1, le=1 << 20)
    prompt_step_tokens: int = Field(default=1024, ge=0, le=1 << 20)
    """Of a step in which nobody decodes, where it is more than `step_tokens`."""
    deterministic: bool = False
    """Warm answers are bit-equal to cold ones: `worker.determinism`."""
    default_completion_tokens: int = Field(default=256, ge=1)
    request_deadline_seconds: Seconds = 600.0
    drain_seconds: Seconds = 10.0
    metrics_listen: OptionalListenAddress = ""
    pool: PoolSettings = PoolSettings()
    queue: QueueSettings = QueueSettings()
    limits: WorkerCallLimitSettings = WorkerCallLimitSettings()
    client: ClientTls = ClientTls()
    cache: CacheSettings = CacheSettings()
    billing: BillingSettings = BillingSettings()
    budget: BudgetSettings = BudgetSettings()
    journal: JournalSettings = JournalSettings()
    log: LogSettings = LogSettings()

    @property
    def call_limits(self) -> CallLimits:
        """Behind one gateway's certificate are all callers: it must be the queue that says no to
        them, so by default one caller has twice what the queue takes, and all have four times that.
        """
        each = self.limits.calls_per_session_max or max(1024, 2 * self.queue.requests_max)
        return CallLimits(self.limits.calls_max or 4 * each, each)

    @model_validator(mode="after")
    def _check(self) -> "WorkerSettings":
        if not self.tenants:
            raise ValueError("tenants: name at least one")
        if len({grant.path for grant in self.tenants}) != len(self.tenants):
            raise ValueError("tenants: a name is there twice")
        if self.step_tokens < self.pool.block_tokens:
            raise ValueError("step_tokens: a step must hold at least one block")
        if self.adapter is not None and self.adapters:
            raise ValueError("adapters: there is one merged already, by the setting adapter")
        if self.budget.enforce and not self.billing.address:
            raise ValueError("budget.enforce: billing is who says; set billing.address")
        if self.deterministic and self.cache.units.whole:
            raise ValueError(
                "deterministic: hits end on the grid of step_tokens, and so not at prefix units;"
                " it does not go with cache.prefix_unit=deepseek"
            )
        return self
