"""The cache's settings: defaults that run, and one clear answer to what cannot work."""

from pathlib import Path

import pytest

from cache_service.replay.cache import WriteWhen
from cache_service.settings import ENV_PREFIX, CacheSettings
from kvtier.settings import SettingsError, load
from storage.policy.choice import POLICIES
from storage.ssd.codec_selector import CODEC_SETTINGS


def loaded(*overrides: str, **environment: str) -> CacheSettings:
    return load(CacheSettings, env_prefix=ENV_PREFIX, overrides=overrides, environment=environment)[
        0
    ]


def refusal(*overrides: str) -> str:
    with pytest.raises(SettingsError) as caught:
        loaded(*overrides)
    return str(caught.value)


def test_the_defaults_serve_one_machine() -> None:
    settings = loaded()
    assert settings.addresses == ["127.0.0.1:7411"]
    assert settings.host.capacity_bytes == 512 * 1024**2
    assert settings.ssd.capacity_bytes == 8 * settings.ssd.segment_bytes == 2 * 1024**3
    assert settings.arena_socket_path == Path(".kvtier/cache/arena.sock").absolute()
    assert settings.limits.core().max_blocks_per_call == 32_768


def test_environment_and_command_line_reach_the_parts() -> None:
    settings = loaded("limits.lease_ttl_seconds=7", KVTIER_CACHE_SSD__ENABLED="false")
    assert settings.limits.core().lease_ttl_seconds == 7.0
    assert not settings.ssd.enabled


def test_a_unix_socket_is_a_second_listener() -> None:
    assert loaded("unix_socket=/run/c.sock").addresses == ["127.0.0.1:7411", "unix:/run/c.sock"]


def test_an_ssd_under_four_segments_is_refused_unless_it_is_off() -> None:
    assert "at least 4 segments" in refusal("ssd.capacity_bytes=1GiB", "ssd.segment_bytes=300MiB")
    loaded("ssd.enabled=false", "ssd.capacity_bytes=1MiB")


@pytest.mark.parametrize("name", ["socket_path", "unix_socket", "data_directory"])
def test_a_socket_path_the_kernel_would_refuse_is_refused_here(name: str) -> None:
    assert "longer than the 107 bytes" in refusal(f"{name}=/tmp/{'x' * 110}")


@pytest.mark.parametrize("address", ["7411", "host", ":7411", "host:port", "host:70000", ""])
def test_an_address_is_host_and_port(address: str) -> None:
    assert "HOST:PORT" in refusal(f"listen={address}")


def test_an_empty_metrics_address_means_none() -> None:
    assert loaded("metrics_listen=").metrics_listen == ""
    assert "HOST:PORT" in refusal("metrics_listen=9100")


@pytest.mark.parametrize(
    "override",
    [
        "host.capacity_bytes=0",
        "host.capacity_bytes=lots",
        "limits.lease_ttl_seconds=0",
        "limits.lease_ttl_seconds=inf",
        "limits.session_ttl_seconds=nan",
        "limits.sessions_max=-1",
        "limits.blocks_per_call_max=1000000",
        "drain_seconds=-1",
        "drain_seconds=inf",
        "log.level=LOUD",
        "ssd.typo=1",
        "ssd.codec=gzip",
        "ssd.write_when=never",
    ],
)
def test_values_that_make_no_sense_name_their_key(override: str) -> None:
    assert override.partition("=")[0] in refusal(override)


@pytest.mark.parametrize("codec", CODEC_SETTINGS)
def test_every_codec_of_the_storage_room_can_be_set(codec: str) -> None:
    assert loaded(f"ssd.codec={codec}").ssd.codec == codec


@pytest.mark.parametrize("policy", POLICIES)
def test_every_eviction_policy_can_be_set_for_either_tier(policy: str) -> None:
    policies = loaded(f"host.eviction={policy}", f"ssd.eviction={policy}").policies
    assert (policies.host_eviction, policies.ssd_eviction) == (policy, policy)
    assert "host.eviction" in refusal("host.eviction=random")


@pytest.mark.parametrize("when", WriteWhen)
def test_the_service_writes_when_the_replay_can(when: WriteWhen) -> None:
    assert loaded(f"ssd.write_when={when.value}").policies.ssd_write_when == when.value
    assert loaded().policies.ssd_write_when == "committed"
