"""Master keys: from a file that nobody else can read, or not at all."""

import os
from pathlib import Path

import pytest

from cache_service.master_keys import MasterKeyFileError, encryption_of, read_master_key
from cache_service.settings import ENV_PREFIX, CacheSettings
from kvtier.settings import SettingsError, load


def key_file(path: Path, raw: bytes = bytes(range(32)), mode: int = 0o600) -> Path:
    path.write_bytes(raw)
    path.chmod(mode)
    return path


def loaded(*overrides: str) -> CacheSettings:
    return load(CacheSettings, env_prefix=ENV_PREFIX, overrides=overrides, environment={})[0]


def test_keys_are_read_the_current_one_first(tmp_path: Path) -> None:
    one, two, three = (key_file(tmp_path / str(i), bytes([i]) * 32, 0o400) for i in range(3))
    settings = loaded(
        "ssd.encryption=aes_256_gcm",
        f"ssd.master_key_file={one}",
        f"ssd.old_master_key_files={two}, {three},{one}",
    )
    found = encryption_of(settings.ssd)
    assert found.master_keys == (bytes(32), b"\1" * 32, b"\2" * 32)
    assert not found.give_up
    assert "\\x" not in repr(found), "keys stay out of logs"


def test_without_encryption_there_is_no_key() -> None:
    assert encryption_of(loaded().ssd).master_keys == ()
    assert encryption_of(loaded("ssd.give_up_encrypted=true").ssd).give_up


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660, 0o644, 0o601])
def test_a_key_that_others_reach_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(MasterKeyFileError, match="chmod 600"):
        read_master_key(key_file(tmp_path / "key", mode=mode))


@pytest.mark.parametrize("size", [0, 16, 31, 33, 64, 1000])
def test_a_key_of_another_length_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(MasterKeyFileError, match="exactly 32 bytes"):
        read_master_key(key_file(tmp_path / "key", bytes(size)))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MasterKeyFileError, match="cannot be read"):
        read_master_key(tmp_path / "nowhere")
    with pytest.raises(MasterKeyFileError):
        read_master_key(tmp_path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(MasterKeyFileError, match="not a file"):
        read_master_key(tmp_path / "pipe")


def test_a_key_of_another_user_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    path = key_file(tmp_path / "key")
    os.chown(path, 12345, 12345)
    with pytest.raises(MasterKeyFileError, match="another user"):
        read_master_key(path)


def test_settings_that_would_encrypt_nothing_or_with_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="master_key_file"):
        loaded("ssd.encryption=aes_256_gcm")
    with pytest.raises(SettingsError, match="nothing would be encrypted"):
        loaded(f"ssd.master_key_file={tmp_path}/key")
    with pytest.raises(SettingsError, match="nothing would be encrypted"):
        loaded(f"ssd.old_master_key_files={tmp_path}/key")
