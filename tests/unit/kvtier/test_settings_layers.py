"""Settings: layers in their order, and every mistake in one clear list."""

from pathlib import Path

import pytest
from pydantic import ByteSize

from kvtier.settings import (
    ListenAddress,
    OptionalListenAddress,
    Seconds,
    SettingsError,
    SettingsModel,
    load,
    parse_command_line,
)


class Disk(SettingsModel):
    capacity_bytes: ByteSize = ByteSize(1024)
    enabled: bool = True


class Sample(SettingsModel):
    listen: str = "127.0.0.1:1"
    disk: Disk = Disk()


def read(**kwargs: object) -> tuple[Sample, dict[str, str]]:
    kwargs.setdefault("environment", {})
    return load(Sample, env_prefix="T_", **kwargs)  # type: ignore[arg-type]


def test_later_layers_win(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('listen = "file:1"\n[disk]\ncapacity_bytes = "2KiB"\nenabled = false\n')
    settings, sources = read(
        config_file=file,
        environment={"T_DISK__CAPACITY_BYTES": "3KiB", "T_LISTEN": "env:1", "OTHER": "x"},
        overrides=["listen=flag:1"],
    )
    assert settings.listen == "flag:1"
    assert settings.disk.capacity_bytes == 3072
    assert settings.disk.enabled is False
    assert sources == {
        "listen": "command line",
        "disk.capacity_bytes": "environment T_DISK__CAPACITY_BYTES",
        "disk.enabled": str(file),
    }


def test_all_problems_are_listed_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        read(overrides=["nonsense=1", "disk.capacity_bytes=many"], environment={"T_DISK__X": "1"})
    text = str(caught.value)
    assert "nonsense" in text
    assert "disk.capacity_bytes (command line)" in text
    assert "disk.x (environment T_DISK__X)" in text


@pytest.mark.parametrize("override", ["listen", "listen.deeper=1"])
def test_misspelt_override_is_refused(override: str) -> None:
    with pytest.raises(SettingsError):
        read(overrides=["listen=a:1", override])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.toml"):
        read(config_file=tmp_path / "none.toml")
    with pytest.raises(SettingsError, match="Is a directory"):
        read(config_file=tmp_path)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"= 1", "is not TOML"),
        (b"\xff\xfe\x00", "is not TOML"),
        (b"x = " + b"[" * 100_000, "nested too deeply"),
        (b"[nope]\nx = 1\n", r"nope \(.*broken.toml\): there is no such setting"),
        (b"disk = 3\n", r"disk \(.*broken.toml\)"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, raw: bytes, words: str) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_bytes(raw)
    with pytest.raises(SettingsError, match=words):
        read(config_file=broken)


@pytest.mark.parametrize("text", ["-1", "1 parsec", ""])
def test_what_is_no_size_is_named_with_what_to_write(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read(overrides=[f"disk.capacity_bytes={text}"])
    line = str(caught.value).splitlines()[-1]
    assert line.startswith("  disk.capacity_bytes (command line): write a size from 0 up")
    assert line.endswith(f"not {text!r}")


def test_settings_are_frozen() -> None:
    settings, _ = read()
    with pytest.raises(ValueError):
        settings.listen = "x"  # type: ignore[misc]


def test_print_config_shows_values_and_sources(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_command_line(
            Sample,
            program="t",
            description="",
            env_prefix="T_",
            argv=["--set", "disk.enabled=false", "--print-config"],
        )
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "disk.enabled = false    # command line" in out
    assert 'listen = "127.0.0.1:1"    # default' in out


def test_bad_settings_end_the_program_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_command_line(
            Sample,
            program="t",
            description="",
            env_prefix="T_",
            argv=["--set", "disk.enabled=perhaps"],
        )
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("t: INVALID_SETTINGS: ")
    assert "disk.enabled" in said


class Server(SettingsModel):
    listen: ListenAddress = "127.0.0.1:1"
    metrics_listen: OptionalListenAddress = ""
    wait_seconds: Seconds = 1.0


@pytest.mark.parametrize("good", ["listen=0.0.0.0:0", "listen=[::1]:65535", "metrics_listen="])
def test_a_server_listens_at_a_host_and_port(good: str) -> None:
    load(Server, env_prefix="T_", overrides=[good], environment={})


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("listen=7411", "HOST:PORT"),
        ("listen=:7411", "HOST:PORT"),
        ("listen=", "HOST:PORT"),
        ("listen=host:port", "HOST:PORT"),
        ("listen=127.0.0.1:65536", "HOST:PORT"),
        ("listen=127.0.0.1:99999", "HOST:PORT"),
        ("listen=a b:1", "HOST:PORT"),
        ("listen=unix:/run/kvtier.sock", "HOST:PORT"),
        ("metrics_listen=9100", "HOST:PORT"),
        ("wait_seconds=0", "greater than 0"),
        ("wait_seconds=inf", "less than or equal"),
        ("wait_seconds=nan", "wait_seconds"),
    ],
)
def test_an_address_or_duration_that_cannot_be_is_refused(override: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        load(Server, env_prefix="T_", overrides=[override], environment={})
