"""A Docker engine: the one that is reachable, else one that is started for these tests alone.

Started as root, with data of its own in the directory that is named, which is kept so that images
need not be built from nothing each time. Blocks; every wait has a bound.
"""

import os
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["Engine", "EngineMissingError", "run"]

START_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 60.0


class EngineMissingError(Exception):
    """There is no engine, and none can be started here; says why."""


def run(
    *command: str,
    seconds_max: float,
    env: dict[str, str] | None = None,
    check: bool = True,
    given: str = "",
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end and returns what it printed. Raises CalledProcessError with its
    output in the message, TimeoutExpired."""
    done = subprocess.run(
        command,
        capture_output=True,
        input=given,
        text=True,
        timeout=seconds_max,
        env={**os.environ, **(env or {})},
        check=False,
    )
    if check and done.returncode:
        error = subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
        error.add_note(f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        raise error
    return done


class Engine:
    """An engine that answers. Raises EngineMissingError."""

    def __init__(self, directory: Path) -> None:
        """`directory`: where one that has to be started keeps its images, containers and socket."""
        self._directory = directory
        self._daemon: subprocess.Popen[bytes] | None = None
        self.env: dict[str, str] = {}
        """What its clients need in their environment."""
        self.compose = _compose_command()
        if not self._answers():
            self._start()

    def docker(
        self, *words: str, seconds_max: float = 60.0, check: bool = True, given: str = ""
    ) -> str:
        """Runs `docker`, `given` to read; what it printed."""
        command = ("docker", *words)
        done = run(*command, seconds_max=seconds_max, env=self.env, check=check, given=given)
        return done.stdout.strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._daemon is not None:
            self._daemon.terminate()
            try:
                self._daemon.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                self._daemon.kill()
                self._daemon.wait()

    def _answers(self) -> bool:
        try:
            done = run("docker", "version", seconds_max=20.0, env=self.env, check=False)
        except (FileNotFoundError, subprocess.TimeoutExpired):
            return False
        return done.returncode == 0

    def _start(self) -> None:
        program = shutil.which("dockerd") or shutil.which("dockerd", path="/usr/sbin:/sbin")
        if program is None or shutil.which("docker") is None:
            raise EngineMissingError("no Docker engine answers and dockerd is not installed")
        if os.geteuid() != 0:
            raise EngineMissingError("no Docker engine answers and only root can start one")
        self._directory.mkdir(parents=True, exist_ok=True)
        socket = f"unix://{self._directory}/docker.sock"
        self.env = {"DOCKER_HOST": socket}
        places = {"data-root": "data", "exec-root": "exec", "pidfile": "docker.pid"}
        words = [f"--{word}={self._directory / place}" for word, place in places.items()]
        words.append(f"--host={socket}")
        log = self._directory / "dockerd.log"
        with log.open("wb") as output:
            self._daemon = subprocess.Popen([program, *words], stdout=output, stderr=output)
        deadline = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < deadline and self._daemon.poll() is None:
            if self._answers():
                return
            time.sleep(0.5)
        self.__exit__(None, None, None)
        raise EngineMissingError(f"dockerd does not start here:\n{log.read_text()[-1000:]}")


def _compose_command() -> tuple[str, ...]:
    for command in (("docker", "compose"), ("docker-compose",)):
        try:
            if run(*command, "version", seconds_max=20.0, check=False).returncode == 0:
                return command
        except (FileNotFoundError, subprocess.TimeoutExpired):
            continue
    raise EngineMissingError("neither docker compose nor docker-compose is installed")
