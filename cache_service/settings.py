"""Settings of one cache service process: defaults < TOML < KVTIER_CACHE_* < --set.

Frozen after start. Every part below the composition root receives its own small piece. What each
setting is for: `docs/settings.md`.
"""

import socket
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, ByteSize, Field, PositiveInt, model_validator

from cache_service.quotas import NO_QUOTAS, Quotas, parse_quotas
from cache_service.views import CacheLimits, CachePolicies
from kvtier.service_settings import CallLimitSettings, ServiceSettings, check_socket_path
from kvtier.settings import OptionalAddress, OptionalListenAddress, Seconds, SettingsModel
from kvtier.tls import ClientTls

__all__ = [
    "ENV_PREFIX",
    "BillingSettings",
    "BulkSettings",
    "CacheSettings",
    "EventSettings",
    "HostSettings",
    "JournalSettings",
    "LimitSettings",
    "PinSettings",
    "SharedSettings",
    "SsdSettings",
]

ENV_PREFIX = "KVTIER_CACHE_"

SEGMENTS_MIN = 4

Eviction = Literal["greedy_dual", "lru", "arc", "s3_fifo"]
"""Names of `storage.policy.choice.POLICIES`; a test holds them equal."""

Size = Annotated[ByteSize, Field(gt=0)]


def _size(mebibytes: int) -> ByteSize:
    return ByteSize(mebibytes * 1024 * 1024)


def _paths(value: object) -> object:
    if isinstance(value, str):
        return tuple(Path(each.strip()) for each in value.split(",") if each.strip())
    return value


def _parsed(quotas: object) -> object:
    return parse_quotas(quotas) if isinstance(quotas, str) else quotas


class HostSettings(SettingsModel):
    """The host arena."""

    capacity_bytes: Size = _size(512)
    eviction: Eviction = "greedy_dual"


class SsdSettings(SettingsModel):
    """The SSD tier."""

    enabled: bool = True
    capacity_bytes: Size = _size(2048)
    segment_bytes: Size = _size(256)
    eviction: Eviction = "greedy_dual"
    write_when: Literal["committed", "leaving"] = "committed"
    """Names of `cache_service.replay.cache.WriteWhen`; a test holds them equal."""
    admission: Literal["all", "first_new"] = "all"
    admission_new_blocks: PositiveInt = 248
    write_bytes_per_day: ByteSize = ByteSize(0)
    codec: Literal["none", "planes_lz4", "zstd", "auto"] = "none"
    scrub_bytes_per_second: Annotated[ByteSize, Field(ge=0)] = _size(8)
    encryption: Literal["off", "aes_256_gcm"] = "off"
    master_key_file: Path | None = None
    old_master_key_files: Annotated[tuple[Path, ...], BeforeValidator(_paths)] = ()
    """Of keys that wrapped data keys before; they only open."""
    give_up_encrypted: bool = False
    """A start drops encrypted blocks whose keys cannot be had, where it would be refused."""

    @model_validator(mode="after")
    def _key_where_it_is_used(self) -> "SsdSettings":
        on = self.encryption != "off"
        if on and self.master_key_file is None:
            raise ValueError("ssd.encryption needs ssd.master_key_file")
        if not on and (self.master_key_file or self.old_master_key_files):
            raise ValueError(
                "master keys are set and ssd.encryption is off: nothing would be encrypted; set"
                " ssd.encryption=aes_256_gcm, or take the keys out"
            )
        return self

    @model_validator(mode="after")
    def _enough_segments(self) -> "SsdSettings":
        if self.enabled and self.capacity_bytes < SEGMENTS_MIN * self.segment_bytes:
            raise ValueError(
                f"ssd.capacity_bytes must hold at least {SEGMENTS_MIN} segments of"
                f" ssd.segment_bytes: {self.capacity_bytes} is less than"
                f" {SEGMENTS_MIN} x {self.segment_bytes}"
            )
        return self


class SharedSettings(SettingsModel):
    """The shared tier. `url` turns it on."""

    url: str = ""
    """file:///PATH, s3://BUCKET/PATH, gs://, az://, mooncake://MASTER:PORT; empty: none."""
    endpoint: str = ""
    """URL of the S3 server, where that is not AWS."""
    region: str = ""
    pool_bytes: Annotated[ByteSize, Field(ge=0)] = ByteSize(0)
    """Of this host's memory, for Mooncake's pool."""
    pool_protocol: Literal["tcp", "rdma"] = "tcp"
    pool_host: str = ""
    """This host, as the others of the pool reach it; empty: its host name."""
    generation: Annotated[int, Field(ge=0)] = 0
    write: Literal["committed", "never"] = "committed"
    find_timeout_seconds: Annotated[float, Field(gt=0, le=60)] = 0.25
    request_timeout_seconds: Annotated[float, Field(gt=0, le=600)] = 5.0
    sealing: Literal["off", "aes_256_gcm"] = "off"
    key_file: Path | None = None
    old_key_files: Annotated[tuple[Path, ...], BeforeValidator(_paths)] = ()

    @model_validator(mode="after")
    def _whole(self) -> "SharedSettings":
        on = self.sealing != "off"
        if on and self.key_file is None:
            raise ValueError("shared.sealing needs shared.key_file, the same on all hosts")
        if (self.pool_bytes or self.pool_host) and not self.url.startswith("mooncake:"):
            raise ValueError("shared.pool_bytes and shared.pool_host are for mooncake:// alone")
        if not on and (self.key_file or self.old_key_files):
            raise ValueError(
                "keys are set and shared.sealing is off: nothing would be sealed; set"
                " shared.sealing=aes_256_gcm, or take the keys out"
            )
        return self


class LimitSettings(CallLimitSettings):
    """Deadlines and bounds that an operator may want to move; the rest are constants."""

    session_ttl_seconds: Seconds = 60.0
    lease_ttl_seconds: Seconds = 30.0
    reservation_ttl_seconds: Seconds = 30.0
    reservation_grace_seconds: Seconds = 30.0
    load_timeout_seconds: Seconds = 10.0
    sessions_max: PositiveInt = 256
    blocks_per_call_max: Annotated[PositiveInt, Field(le=131_072)] = 32_768
    """A 2 million token context in 64-token blocks; 131,072 hashes are still a 4 MiB message."""
    leases_per_session_max: PositiveInt = 1024
    reservations_per_session_max: PositiveInt = 256

    def core(self) -> CacheLimits:
        """As the core takes them."""
        return CacheLimits(
            session_ttl_seconds=self.session_ttl_seconds,
            lease_ttl_seconds=self.lease_ttl_seconds,
            reservation_ttl_seconds=self.reservation_ttl_seconds,
            reservation_grace_seconds=self.reservation_grace_seconds,
            load_timeout_seconds=self.load_timeout_seconds,
            max_sessions=self.sessions_max,
            max_blocks_per_call=self.blocks_per_call_max,
            max_leases_per_session=self.leases_per_session_max,
            max_reservations_per_session=self.reservations_per_session_max,
        )


class EventSettings(SettingsModel):
    """The stream of events."""

    retained: PositiveInt = 262_144
    watchers_max: PositiveInt = 16
    stall_seconds: Seconds = 10.0


class PinSettings(SettingsModel):
    """What operators may keep cached."""

    share_max: Annotated[float, Field(ge=0, le=0.75)] = 0.5
    """More, and recycling writes the same blocks again and again for little room."""
    seconds_max: Annotated[float, Field(gt=0, le=3_653 * 86_400.0)] = 30 * 86_400.0
    """At most ten years: who wants more wants a second copy somewhere else."""


class BulkSettings(SettingsModel):
    """The bulk lane: payload bytes for clients on other hosts, beside gRPC."""

    listen: OptionalListenAddress = ""
    """Empty: none."""
    connections_max: PositiveInt = 96


class BillingSettings(SettingsModel):
    """Where attestations go; without an address none are made."""

    address: OptionalAddress = ""
    call_timeout_seconds: Seconds = 10.0
    backoff_seconds_max: Seconds = 30.0


class MeteringSettings(SettingsModel):
    """What billing is told beside attestations; nothing without `billing.address`."""

    storage: bool = True
    """Whether what is kept stored is metered, and charged where the price book has a price."""
    interval_seconds: Annotated[float, Field(ge=0.1, le=3600)] = 60.0
    """What a service that is killed may lose."""


class JournalSettings(SettingsModel):
    """Of attestations that billing does not have yet."""

    capacity_bytes: Annotated[ByteSize, Field(ge=1 << 20)] = _size(256)


class LogSettings(SettingsModel):
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    style: Literal["text", "json"] = "text"


class CacheSettings(ServiceSettings):
    """The whole. `arena_socket_path` and `addresses` are what the composition root uses."""

    listen: OptionalListenAddress = "127.0.0.1:7411"
    data_directory: Path = Path(".kvtier/cache")
    socket_path: Path | None = None
    """The arena hand-over's socket; by default `arena.sock` in the data directory."""
    metrics_listen: OptionalListenAddress = ""
    """"HOST:PORT" of the Prometheus page; empty for none."""
    metrics_owners_max: Annotated[int, Field(ge=0, le=100)] = 0
    """Organisations that the page names with what they own: those with most. 0: none."""
    drain_seconds: Seconds = 10.0
    node: Annotated[str, Field(min_length=1, max_length=128)] = Field(
        default_factory=socket.gethostname
    )
    """Named in attestations."""
    client: ClientTls = ClientTls()
    """How billing is called."""
    billing: BillingSettings = BillingSettings()
    metering: MeteringSettings = MeteringSettings()
    journal: JournalSettings = JournalSettings()
    bulk: BulkSettings = BulkSettings()
    host: HostSettings = HostSettings()
    ssd: SsdSettings = SsdSettings()
    shared: SharedSettings = SharedSettings()
    limits: LimitSettings = LimitSettings()
    events: EventSettings = EventSettings()
    quotas: Annotated[Quotas, BeforeValidator(_parsed)] = NO_QUOTAS
    """Of owners of blocks: "acme host_hard=8GiB host_soft=6GiB, * ssd_hard=100GiB"."""
    pins: PinSettings = PinSettings()
    log: LogSettings = LogSettings()

    @property
    def policies(self) -> CachePolicies:
        """As the core takes them."""
        return CachePolicies(
            host_eviction=self.host.eviction,
            ssd_eviction=self.ssd.eviction,
            ssd_admission=self.ssd.admission,
            ssd_new_blocks_max=self.ssd.admission_new_blocks,
            ssd_write_bytes_per_day=int(self.ssd.write_bytes_per_day),
            ssd_write_when=self.ssd.write_when,
            shared_writes=self.shared.write == "committed",
            quotas=self.quotas,
        )

    @model_validator(mode="after")
    def _socket_path_fits(self) -> "CacheSettings":
        check_socket_path("socket_path", self.arena_socket_path)
        return self

    @property
    def arena_socket_path(self) -> Path:
        """Absolute, because clients have other working directories."""
        return (self.socket_path or self.data_directory / "arena.sock").absolute()
