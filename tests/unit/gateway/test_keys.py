"""Keys: what opens them, what rotation and revocation do, and what their file never holds."""

import json
import multiprocessing
import os
import re
import threading
import tracemalloc
from pathlib import Path

import pytest

from gateway.errors import KeyChangeError, KeysUnavailableError
from gateway.identity import user_name
from gateway.key_file import FILE_BYTES_MAX, KeyFile, KeyReader
from gateway.keys import SECRETS_MAX, ApiKey, KeyRing, new_key, path_of, revoked, rotated
from kvtier.scopes import ScopePath

NOW = 1_000_000


def made(now: int = NOW, classes: tuple[str, ...] = ()) -> tuple[ApiKey, str]:
    return new_key("ci", ScopePath("acme", "search"), classes, now)


def test_a_key_opens_itself_and_nothing_that_differs_in_a_character_does() -> None:
    key, text = made()
    ring = KeyRing().with_key(key).with_key(made()[0])
    assert ring.find(text, NOW) == key
    for place in range(len(text)):
        other = text[:place] + ("b" if text[place] != "b" else "c") + text[place + 1 :]
        assert ring.find(other, NOW) is None, place
    for wrong in ("", text[:-1], f"{text}x", f" {text}", text.upper(), "sk-kvtier-é"):
        assert ring.find(wrong, NOW) is None


def test_the_text_is_long_random_and_nowhere_in_the_key() -> None:
    key, text = made()
    secret = text.rpartition("sk-kvtier-")[2].partition("-")[2]
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", secret)
    assert secret not in repr(key)
    assert len({made()[1] for _ in range(100)}) == 100


def test_rotation_keeps_the_id_and_the_old_text_until_the_overlap_ends() -> None:
    key, old = made()
    key, new = rotated(key, 60, NOW + 10)
    ring = KeyRing().with_key(key)
    assert ring.find(old, NOW + 69) == ring.find(new, NOW + 69) == key
    assert ring.find(old, NOW + 70) is None
    assert ring.find(new, NOW + 10**9) == key
    # A later rotation never gives an old text more time.
    key, newest = rotated(key, 10**6, NOW + 20)
    ring = KeyRing().with_key(key)
    assert ring.find(old, NOW + 70) is None
    assert ring.find(new, NOW + 10**6) == ring.find(newest, NOW + 10**6) == key


def test_rotation_without_overlap_ends_the_old_text_at_once() -> None:
    key, old = made()
    key, new = rotated(key, 0, NOW + 1)
    ring = KeyRing().with_key(key)
    assert ring.find(old, NOW + 1) is None
    assert ring.find(new, NOW + 1) == key
    assert len(key.secrets) == 1


def test_a_key_has_few_texts_at_a_time() -> None:
    key, _ = made()
    for _ in range(SECRETS_MAX - 1):
        key, _ = rotated(key, 60, NOW)
    with pytest.raises(KeyChangeError, match="--overlap 0"):
        rotated(key, 60, NOW)
    key, text = rotated(key, 60, NOW + 61)
    assert KeyRing().with_key(key).find(text, NOW + 61) == key


def test_a_revoked_key_opens_nothing_and_cannot_be_rotated() -> None:
    key, text = made()
    ended = revoked(key, NOW + 1)
    assert KeyRing().with_key(ended).find(text, NOW + 2) is None
    assert revoked(ended, NOW + 9) == ended
    with pytest.raises(KeyChangeError, match="revoked"):
        rotated(ended, 60, NOW)


@pytest.mark.parametrize(
    ("organisation", "project", "user"),
    [
        ("", "p", ""),
        ("a/b", "p", ""),
        ("a", "", ""),
        ("a", "p*", ""),
        ("a", "p", "u u"),
        ("a%", "p", ""),
        ("a", "%70", ""),
        ("a", "p", "u%20u"),
    ],
)
def test_a_key_is_of_a_path_that_can_be_one(organisation: str, project: str, user: str) -> None:
    with pytest.raises(KeyChangeError):
        path_of(organisation, project, user)


@pytest.mark.parametrize("name", ["x" * 129, "a\nb"])
def test_names_and_classes_are_bounded(name: str) -> None:
    with pytest.raises(KeyChangeError):
        new_key(name, ScopePath("acme", "p"), (), NOW)
    with pytest.raises(KeyChangeError):
        new_key("", ScopePath("acme", "p"), (name,), NOW)


def test_a_key_is_of_no_user_that_a_requests_user_is_written_as() -> None:
    with pytest.raises(KeyChangeError, match="%"):
        path_of("acme", "search", user_name("a b", "user"))


def put(file: KeyFile, key: ApiKey) -> None:
    file.change(lambda _: (key, None))


def test_the_file_gives_back_what_was_put_in_and_has_no_text(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "deep" / "keys.json")
    assert file.read() == KeyRing()
    first, text = made(classes=("batch", "flex"))
    second, other = rotated(made()[0], 60, NOW)
    third = revoked(new_key("ü", ScopePath("acme", "p", "ann"), (), NOW)[0], NOW + 5)
    for key in (first, second, third):
        put(file, key)
    assert list(file.read().keys.values()) == [first, second, third]
    raw = file.path.read_text()
    for each in (text, other):
        assert each not in raw
        assert each[-43:] not in raw
    assert file.path.stat().st_mode & 0o777 == 0o600


def test_a_reader_sees_each_change_with_its_next_look(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    reader = KeyReader(file)
    assert reader.ring() == KeyRing()
    key, text = made()
    put(file, key)
    assert reader.ring().find(text, NOW) == key
    for number in range(50):
        put(file, revoked(key, NOW) if number % 2 else key)
        assert (reader.ring().find(text, NOW) is None) == bool(number % 2)
    file.path.unlink()
    assert reader.ring() == KeyRing()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'{"format": 1}',
        b'{"format": 1, "keys": [{}]}',
        b'{"format": 1, "keys": [{"key_id": "a", "name": "", "path": "//", "created_at": 1,'
        b' "revoked_at": null, "service_classes": [], "secrets": []}]}',
        b'{"format": 2, "keys": []}',
        b"\xff\xfe",
    ],
)
def test_a_file_that_is_none_lets_nobody_in_and_is_not_written_over(
    tmp_path: Path, raw: bytes
) -> None:
    file = KeyFile(tmp_path / "keys.json")
    put(file, made()[0])
    reader = KeyReader(file)
    file.path.write_bytes(raw)
    with pytest.raises(KeysUnavailableError):
        reader.ring()
    with pytest.raises(KeysUnavailableError):
        put(file, made()[0])
    assert file.path.read_bytes() == raw


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o622])
def test_a_file_that_others_reach_is_refused(tmp_path: Path, mode: int) -> None:
    file = KeyFile(tmp_path / "keys.json")
    put(file, made()[0])
    file.path.chmod(mode)
    with pytest.raises(KeysUnavailableError, match="chmod 600"):
        KeyReader(file)


def test_a_reader_never_sees_half_a_change(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    put(file, made()[0])
    reader, done = KeyReader(file), threading.Event()

    def write() -> None:
        for _ in range(60):
            put(file, made()[0])
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    seen = 1
    while not done.is_set():
        count = len(reader.ring().keys)
        assert count >= seen
        seen = count
    thread.join()
    assert len(reader.ring().keys) == 61


def _put_many(path: str, count: int) -> None:
    for _ in range(count):
        put(KeyFile(Path(path)), made()[0])


def test_no_change_of_two_writers_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_put_many, args=(str(path), 25)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert len(KeyFile(path).read().keys) == 50


def test_a_crash_before_the_rename_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = KeyFile(tmp_path / "keys.json")
    key, _ = made()
    put(file, key)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeysUnavailableError, match="No space"):
        put(file, made()[0])
    monkeypatch.undo()
    assert list(file.read().keys.values()) == [key]
    put(file, made()[0])
    assert len(json.loads(file.path.read_text())["keys"]) == 2


def test_of_what_is_too_large_not_a_byte_is_read(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    put(file, made()[0])
    with file.path.open("r+b") as sparse:
        sparse.truncate(FILE_BYTES_MAX + 1)
    tracemalloc.start()
    try:
        with pytest.raises(KeysUnavailableError, match="larger"):
            KeyReader(file)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    os.mkfifo(file.path, 0o600)
    with pytest.raises(KeysUnavailableError, match="no file"):
        KeyReader(file)


@pytest.mark.parametrize("name", ["keys.json.new", "keys.json.lock"])
def test_what_lies_where_the_new_file_goes_is_not_written_through(
    tmp_path: Path, name: str
) -> None:
    file = KeyFile(tmp_path / "keys.json")
    put(file, made()[0])
    (tmp_path / name).unlink(missing_ok=True)
    other = tmp_path / "other"
    other.write_text("another's")
    other.chmod(0o644)
    (tmp_path / name).symlink_to(other)
    try:
        put(file, made()[0])
    except KeysUnavailableError:
        assert name.endswith(".lock")
    assert other.read_text() == "another's"
    assert not file.path.is_symlink()
    assert file.path.stat().st_mode & 0o777 == 0o600


def test_a_change_that_keeps_size_and_time_is_seen_too(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    key, text = made()
    put(file, key)
    reader, before = KeyReader(file), file.path.stat()
    raw = file.path.read_bytes()
    file.path.write_bytes(raw.replace(key.key_id.encode(), b"0" * 16))
    os.utime(file.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.path.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (
        before.st_ino, before.st_size, before.st_mtime_ns,
    )  # fmt: skip
    assert reader.ring().find(text, NOW) is None


def test_a_file_that_others_come_to_reach_lets_nobody_in(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    put(file, made()[0])
    reader = KeyReader(file)
    file.path.chmod(0o644)
    with pytest.raises(KeysUnavailableError, match="chmod 600"):
        reader.ring()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_root_changes_stays_the_gateways(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    put(file, made()[0])
    for path in tmp_path.iterdir():
        os.chown(path, 4321, 1234)
    put(file, made()[0])
    for path in tmp_path.iterdir():
        found = path.stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (4321, 1234, 0o600)
    assert len(json.loads(file.path.read_text())["keys"]) == 2
    with pytest.raises(KeysUnavailableError, match="another user's"):
        KeyReader(file)
