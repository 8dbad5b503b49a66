"""A PostgreSQL server of one's own: in a temporary directory, under a user that is not root.

`start_postgres` raises `NoPostgresError` where none is installed; tests say so and skip.
"""

import contextlib
import ctypes
import glob
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

__all__ = ["NoPostgresError", "PostgresServer", "needed_postgres"]

_USERS = ("postgres", "nobody")


class NoPostgresError(Exception):
    """There is nothing to start."""


class PostgresServer:
    """A running server; only its own socket reaches it. `stop` removes everything."""

    def __init__(self, *settings: str) -> None:
        """`settings` as "fsync=off". Raises NoPostgresError."""
        _psycopg()
        self._bin = _binaries()
        self._user = _user()
        self.directory = Path(tempfile.mkdtemp(prefix="kvtier-postgres-"))
        if self._user is not None:
            os.chown(self.directory, pwd.getpwnam(self._user).pw_uid, -1)
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._run("initdb", "--auth=trust", "--username=kvtier", "--encoding=UTF8", "--no-sync")
        self.start()

    def start(self) -> None:
        """After `kill`: recovers what was committed."""
        command = [str(self._bin / "postgres"), "-D", str(self._data), "-k", str(self.directory)]
        command += ["-c", "listen_addresses=", "-c", "max_connections=50"]
        for setting in self._settings:
            command += ["-c", setting]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd="/",
                stdout=log,
                stderr=log,
                user=self._user,
                preexec_fn=_end_with_parent,
            )
        while True:
            try:
                self._connect().close()
                return
            except _psycopg().OperationalError:
                if self._process.poll() is not None:
                    raise NoPostgresError((self.directory / "log").read_text()[-500:]) from None
                time.sleep(0.01)

    def kill(self) -> None:
        """kill -9 of every process of the server; nobody says goodbye."""
        assert self._process is not None
        pid = self._process.pid
        backends = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for each in (pid, *map(int, backends)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        self._process.wait()
        for each in backends:
            while Path(f"/proc/{each}").exists():
                time.sleep(0.005)
        (self._data / "postmaster.pid").unlink(missing_ok=True)

    def new_database(self, encoding: str = "UTF8", *, like: str = "") -> str:
        """The URL of an empty one, or of a copy of the one at `like`, which nobody has open."""
        name = f"ledger_{uuid.uuid4().hex[:12]}"
        template = urlsplit(like).path[1:] or "template0"
        made = f"CREATE DATABASE {name} TEMPLATE {template} ENCODING '{encoding}' LOCALE 'C'"
        with self._connect() as connection:
            connection.execute(made)
        return f"postgresql://kvtier@/{name}?host={self.directory}"

    def stop(self) -> None:
        if self._process is not None:
            # At once: what hundreds of databases still have to write is removed anyway.
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    def _connect(self) -> Any:
        conninfo = f"host={self.directory} user=kvtier dbname=postgres"
        return _psycopg().connect(conninfo, autocommit=True)

    def _run(self, program: str, *arguments: str) -> None:
        command: Sequence[str] = [str(self._bin / program), "-D", str(self._data), *arguments]
        subprocess.run(command, check=True, cwd="/", user=self._user, stdout=subprocess.DEVNULL)


def _end_with_parent() -> None:
    """A test run that is killed leaves no server behind; nor does Ctrl-C end it before its time."""
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)


_PR_SET_PDEATHSIG = 1


def _psycopg() -> Any:
    try:
        import psycopg
    except ImportError as error:
        raise NoPostgresError(f"no driver (pip install 'kvtier[postgres]'): {error}") from None
    return psycopg


def _binaries() -> Path:
    found = shutil.which("postgres")
    places = [found] if found else sorted(glob.glob("/usr/lib/postgresql/*/bin/postgres"))
    if not places:
        raise NoPostgresError("no PostgreSQL is installed (apt-get install postgresql)")
    return Path(places[-1]).parent


def _user() -> str | None:
    """Whom the server runs as: root may not run it."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(user for user in _USERS if user in known)


def needed_postgres(*settings: str) -> PostgresServer:
    """A server, or the test is skipped and says why."""
    try:
        return PostgresServer(*settings)
    except NoPostgresError as error:
        pytest.skip(f"NOT TESTED ON POSTGRESQL: {error}")
