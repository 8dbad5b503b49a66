from pathlib import Path

import pytest

from billing.settings import ENV_PREFIX, BillingSettings
from kvtier.settings import SettingsError, load


def test_the_defaults_start_on_one_machine() -> None:
    settings, _ = load(BillingSettings, env_prefix=ENV_PREFIX, environment={})
    assert settings.listen == "127.0.0.1:7431"
    assert settings.data_directory == Path(".kvtier/billing")
    assert settings.price_book is None


def test_each_layer_wins_over_the_one_before(tmp_path: Path) -> None:
    file = tmp_path / "billing.toml"
    file.write_text('listen = "0.0.0.0:1"\ndrain_seconds = 1\n[log]\nlevel = "ERROR"\n')
    settings, sources = load(
        BillingSettings,
        env_prefix=ENV_PREFIX,
        config_file=file,
        overrides=["listen=127.0.0.1:3"],
        environment={"KVTIER_BILLING_LISTEN": "127.0.0.1:2", "KVTIER_BILLING_DRAIN_SECONDS": "2"},
    )
    assert (settings.listen, settings.drain_seconds, settings.log.level) == (
        "127.0.0.1:3",
        2.0,
        "ERROR",
    )
    assert sources["drain_seconds"] == "environment KVTIER_BILLING_DRAIN_SECONDS"


@pytest.mark.parametrize(
    "override",
    [
        "listen=7431",
        "listen=127.0.0.1:99999",
        "drain_seconds=-1",
        "prices=x",
        "log.level=LOUD",
        "metrics_listen=x",
    ],
)
def test_a_setting_that_is_not_usable_stops_the_start(override: str) -> None:
    with pytest.raises(SettingsError, match=override.partition("=")[0]):
        load(BillingSettings, env_prefix=ENV_PREFIX, overrides=[override], environment={})
