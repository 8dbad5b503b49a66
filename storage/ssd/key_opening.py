"""From settings and a data directory to its data keys, or to a refusal that says what to do.

Invariant: a directory that holds encrypted blocks is opened with the keys to all of them or, where
its owner says `give_up`, without those that cannot be had; never quietly without. Keys that an old
master key had wrapped are wrapped by the current one before anything else. Opening thread.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from storage.env import Env
from storage.errors import DataKeysLostError, MasterKeyNeededError, MasterKeyWrongError
from storage.ssd.directory import DataDirectory
from storage.ssd.encryption import KEY_ID_BYTES, DataKey
from storage.ssd.format import KEY_FILE
from storage.ssd.key_file import (
    BadKeyFileError,
    KeyFile,
    MasterKey,
    WrappedKey,
    pack_key_file,
    parse_key_file,
)
from storage.ssd.key_ring import Encryption, KeyRing, no_keys

__all__ = ["open_key_ring"]

_GIVE_UP = "or set ssd.give_up_encrypted=true for one start, which drops those blocks"


def open_key_ring(env: Env, data: DataDirectory, encryption: Encryption) -> KeyRing:
    """Raises DataKeysLostError, MasterKeyNeededError, MasterKeyWrongError, OSError."""
    present = data.has_key_file
    if not encryption.master_keys:
        if data.encrypted or present:
            _turn_off(data, encryption)
        return no_keys(env)
    masters = [MasterKey(secret) for secret in encryption.master_keys]
    file = _found(data, encryption) if data.encrypted or present else None
    fresh = file is None
    if file is None:
        file = KeyFile(env.random_bytes(KEY_ID_BYTES))
    keys = _opened(data, file, {each.fingerprint: each for each in masters}, encryption)
    current, draw = masters[0], env.random_bytes
    rewrapped = [_under(current, file.store_id, *pair, draw) for pair in keys]
    wrapped = tuple(wrapped for _, wrapped in rewrapped)
    if fresh or wrapped != file.keys:
        file = replace(file, keys=wrapped)
        data.replace_file(KEY_FILE, pack_key_file(file))
    # The file first: a marker that says so without one would look like a loss.
    data.mark_encrypted()

    def save(raw: bytes) -> None:
        data.replace_file(KEY_FILE, raw)

    return KeyRing(env, current, file, rewrapped, save)


def _turn_off(data: DataDirectory, encryption: Encryption) -> None:
    """Without encryption: only what has no keys may go on like that. Raises
    MasterKeyNeededError."""
    if not encryption.give_up and not _empty(data):
        raise MasterKeyNeededError(
            f"{data.path} holds encrypted blocks: set ssd.encryption and ssd.master_key_file as"
            f" they were, {_GIVE_UP}"
        )
    if data.has_key_file:
        data.remove_file(KEY_FILE)
    data.unmark_encrypted()


def _empty(data: DataDirectory) -> bool:
    """There are no data keys, so that nothing can be encrypted under one."""
    try:
        return data.has_key_file and not parse_key_file(data.read_file(KEY_FILE)).keys
    except BadKeyFileError:
        return False


def _found(data: DataDirectory, encryption: Encryption) -> KeyFile | None:
    """None: it is lost, and given up. Raises DataKeysLostError."""
    try:
        if not data.has_key_file:
            raise BadKeyFileError("it is missing")
        return parse_key_file(data.read_file(KEY_FILE))
    except BadKeyFileError as error:
        _lost(data, encryption, str(error))
        return None


def _opened(
    data: DataDirectory,
    file: KeyFile,
    masters: Mapping[str, MasterKey],
    encryption: Encryption,
) -> list[tuple[DataKey, WrappedKey]]:
    """Raises MasterKeyWrongError, DataKeysLostError."""
    foreign = sorted({key.master for key in file.keys} - masters.keys())
    if foreign and not encryption.give_up:
        raise MasterKeyWrongError(
            f"the data keys in {data.path}/{KEY_FILE} are wrapped by the master key with the"
            f" fingerprint {', '.join(foreign)}, and the settings have"
            f" {', '.join(masters)}: add its file to ssd.old_master_key_files, {_GIVE_UP}",
            fingerprints=",".join(foreign),
        )
    keys: list[tuple[DataKey, WrappedKey]] = []
    for wrapped in file.keys:
        master = masters.get(wrapped.master)
        if master is None:
            continue
        try:
            keys.append((master.unwrap(file.store_id, wrapped), wrapped))
        except BadKeyFileError as error:
            _lost(data, encryption, str(error))
    lost = len(file.keys) - len(keys)
    if lost:
        data.problems.append(f"{lost} data keys could not be opened and are given up")
    return keys


def _under(
    master: MasterKey,
    store_id: bytes,
    key: DataKey,
    wrapped: WrappedKey,
    draw: Callable[[int], bytes],
) -> tuple[DataKey, WrappedKey]:
    """The key as that master key wraps it."""
    if wrapped.master == master.fingerprint:
        return key, wrapped
    return key, master.wrap(store_id, key, wrapped.made_seconds, wrapped.records_max, draw)


def _lost(data: DataDirectory, encryption: Encryption, why: str) -> None:
    """Raises DataKeysLostError unless it is given up."""
    if not encryption.give_up:
        raise DataKeysLostError(
            f"the data keys in {data.path}/{KEY_FILE} are damaged or gone ({why}), and without them"
            f" the encrypted blocks cannot be read: put the file back from a copy, {_GIVE_UP}"
        )
    data.problems.append(f"data keys are given up: {why}")
