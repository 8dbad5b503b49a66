import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from billing.errors import (
    LedgerForeignError,
    LedgerLockedError,
    LedgerReadOnlyError,
    LedgerTooNewError,
    LedgerUnavailableError,
)
from billing.ledger_sqlite import LEDGER_FILE, SqliteStore

HOLD = """
import sys
from pathlib import Path
from billing.ledger_sqlite import SqliteStore
store = SqliteStore(Path(sys.argv[1]))
print("open", flush=True)
sys.stdin.read()
store.close()
"""


def _write(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def test_a_ledger_that_another_process_has_open_is_refused_with_its_id(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        with pytest.raises(LedgerLockedError, match=f"process {process.pid}"):
            SqliteStore(tmp_path)
        process.communicate()
    SqliteStore(tmp_path).close()


def test_a_ledger_of_a_newer_kvtier_is_refused_and_left_alone(tmp_path: Path) -> None:
    SqliteStore(tmp_path).close()
    path = tmp_path / LEDGER_FILE
    _write(
        path,
        "DROP TRIGGER ledger_meta_no_update",
        "UPDATE ledger_meta SET value = '9' WHERE key = 'format_version'",
    )
    before = path.read_bytes()
    with pytest.raises(LedgerTooNewError, match="format 9"):
        SqliteStore(tmp_path)
    assert path.read_bytes() == before


def test_a_database_of_something_else_is_refused(tmp_path: Path) -> None:
    _write(tmp_path / LEDGER_FILE, "CREATE TABLE guests (name TEXT)")
    with pytest.raises(LedgerForeignError, match="not a ledger of kvtier"):
        SqliteStore(tmp_path)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / LEDGER_FILE).write_bytes(b"not a database at all " * 100)
    with pytest.raises(LedgerForeignError, match="not a ledger of kvtier"):
        SqliteStore(tmp_path)


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "billing").write_text("")
    with pytest.raises(LedgerUnavailableError, match="billing"):
        SqliteStore(tmp_path / "billing")


def test_a_refused_ledger_is_not_left_locked(tmp_path: Path) -> None:
    path = tmp_path / LEDGER_FILE
    path.write_bytes(b"x" * 5000)
    with pytest.raises(LedgerForeignError):
        SqliteStore(tmp_path)
    path.unlink()
    SqliteStore(tmp_path).close()


def test_two_ledgers_start_their_chains_differently(
    tmp_path: Path, open_till: Callable[..., Any]
) -> None:
    other = SqliteStore(tmp_path / "other")
    assert open_till().store.ledger_id != other.ledger_id
    other.close()


@pytest.mark.parametrize("what", ["directory", "file"])
def test_a_ledger_that_cannot_be_written_is_refused(tmp_path: Path, what: str) -> None:
    directory = tmp_path / "ledger"
    SqliteStore(directory).close()
    if what == "directory":
        (directory / "ledger.lock").unlink()
    else:
        (directory / "ledger.lock").chmod(0o666)
    directory.chmod(0o555)
    (directory / LEDGER_FILE).chmod(0o444)
    try:
        assert _open_as_somebody_else(directory) == LedgerReadOnlyError.reason
    finally:
        directory.chmod(0o755)


def _open_as_somebody_else(directory: Path) -> str:
    """The reason a process without privileges is given: root may write anywhere."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        answer = "OPENED"
        try:
            if os.geteuid() == 0:
                os.chdir(directory)
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
            SqliteStore(Path() if os.getcwd() == str(directory) else directory).close()
        except BaseException as error:
            answer = getattr(error, "reason", repr(error))
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as answers:
        return answers.read().decode()
