"""Containers of `docker-compose.yml`, under a project name of their own. Blocks."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cluster.engine import Engine, run
from tests.cluster.images import ROOT

__all__ = ["Cluster"]

UP_SECONDS_MAX = 600.0
BUILD_SECONDS_MAX = 2400.0
HEALTHY_SECONDS_MAX = 240.0


class Cluster:
    """The services of one compose project."""

    def __init__(self, engine: Engine, project: str) -> None:
        self._engine = engine
        self._project = project

    def build(self) -> None:
        """Builds every image of the file."""
        self._compose("build", seconds_max=BUILD_SECONDS_MAX)

    def up(self) -> None:
        """Starts everything, in order, and waits until what has a health check is healthy."""
        self._compose("up", "--detach", "--no-build", seconds_max=UP_SECONDS_MAX)
        for service in self.services():
            self.wait_healthy(service)

    def down(self) -> None:
        """Removes containers, networks and volumes."""
        self._compose("down", "--volumes", "--timeout", "30", seconds_max=300.0)

    def services(self) -> list[str]:
        """Those that go on running."""
        names = self._compose("ps", "--services").split()
        return [name for name in names if self.inspect(name)["State"]["Running"]]

    def inspect(self, service: str) -> dict[str, Any]:
        """What the engine says of the service's container."""
        found: dict[str, Any] = json.loads(self._engine.docker("inspect", self.container(service)))[
            0
        ]
        return found

    def container(self, service: str) -> str:
        """The id of the service's container, also when it has ended."""
        labels = (
            f"label=com.docker.compose.project={self._project}",
            f"label=com.docker.compose.service={service}",
        )
        filters = [word for label in labels for word in ("--filter", label)]
        return self._engine.docker("ps", "--all", "--quiet", "--no-trunc", *filters)

    def execute(self, service: str, *command: str, seconds_max: float = 240.0) -> str:
        """Runs a command in the service's container; what it printed."""
        return self._engine.docker(
            "exec", self.container(service), *command, seconds_max=seconds_max
        )

    def ask(self, service: str, *command: str) -> dict[str, Any]:
        """As `execute`, of a command that prints one JSON object."""
        answer: dict[str, Any] = json.loads(self.execute(service, *command, "--json"))
        return answer

    def copy(self, service: str, path: str, into: Path) -> None:
        """Copies a file out of the service's container."""
        self._engine.docker("cp", f"{self.container(service)}:{path}", str(into))

    def kill(self, service: str) -> None:
        """The main process dies as from a crash, so that the engine starts it again by itself."""
        before = self.inspect(service)["State"]
        os.kill(before["Pid"], signal.SIGKILL)
        self._until(
            f"{service} to be started again",
            lambda: self.inspect(service)["State"]["StartedAt"] != before["StartedAt"],
        )

    def pause(self, service: str) -> None:
        """Nothing in the container runs until `resume`."""
        self._engine.docker("pause", self.container(service))

    def resume(self, service: str) -> None:
        self._engine.docker("unpause", self.container(service))

    def wait_healthy(self, service: str) -> None:
        """Raises AssertionError when it does not become so."""

        def healthy() -> bool:
            state = self.inspect(service)["State"]
            return bool(state.get("Health", {"Status": "healthy"})["Status"] == "healthy")

        self._until(f"{service} to be healthy", healthy)

    def logs(self, service: str) -> str:
        """What the service's container wrote, both streams."""
        command = ("docker", "logs", self.container(service))
        done = run(*command, seconds_max=60.0, env=self._engine.env)
        return done.stdout + done.stderr

    def _until(self, what: str, there: Callable[[], bool]) -> None:
        deadline = time.monotonic() + HEALTHY_SECONDS_MAX
        while time.monotonic() < deadline:
            if there():
                return
            time.sleep(1.0)
        raise AssertionError(f"waited {HEALTHY_SECONDS_MAX:.0f} s for {what}")

    def _compose(self, *words: str, seconds_max: float = 60.0) -> str:
        command = (*self._engine.compose, "--project-name", self._project)
        file = ("--file", str(ROOT / "docker-compose.yml"))
        done = run(*command, *file, *words, seconds_max=seconds_max, env=self._engine.env)
        return done.stdout
