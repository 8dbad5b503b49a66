"""Containers of `docker-compose.yml`, under a project name of their own. Blocks."""

import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import yaml

from tests.cluster.engine import Engine, run
from tests.cluster.images import ROOT

__all__ = ["Cluster"]

UP_SECONDS_MAX = 600.0
BUILD_SECONDS_MAX = 2400.0
HEALTHY_SECONDS_MAX = 240.0


class Cluster:
    """The services of one compose project."""

    def __init__(self, engine: Engine, project: str, left_out: Collection[str] = ()) -> None:
        """`left_out`: services whose images are not to be had."""
        self._engine = engine
        self._project = project
        self.left_out = frozenset(left_out)

    def build(self) -> None:
        """Builds both images of the file."""
        self._compose("build", "setup", "model", seconds_max=BUILD_SECONDS_MAX)

    def up(self) -> None:
        """Starts everything, in order, and waits until what has a health check is healthy."""
        command = ("up", "--detach", "--no-build", *self._wanted())
        try:
            self._compose(*command, seconds_max=UP_SECONDS_MAX)
        except subprocess.CalledProcessError as error:
            for service in filter(self.container, self._wanted()):
                error.add_note(f"{service}: {self.logs(service)[-1000:]}")
            raise
        for service in self.services():
            self.wait_healthy(service)

    def down(self) -> None:
        """Removes containers, networks and volumes."""
        self._compose("down", "--volumes", "--timeout", "30", seconds_max=300.0)

    def services(self) -> list[str]:
        """Those that go on running."""
        return [name for name in self._wanted() if self.inspect(name)["State"]["Running"]]

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

    def execute(
        self, service: str, *command: str, given: str = "", seconds_max: float = 240.0
    ) -> str:
        """Runs a command in the service's container, `given` to read; what it printed."""
        words = ("exec", "--interactive", self.container(service), *command)
        return self._engine.docker(*words, given=given, seconds_max=seconds_max)

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
        self.until(
            f"{service} to be started again",
            lambda: self.inspect(service)["State"]["StartedAt"] != before["StartedAt"],
        )

    def pause(self, service: str) -> None:
        """Nothing in the container runs until `resume`."""
        self._engine.docker("pause", self.container(service))

    def resume(self, service: str) -> None:
        self._engine.docker("unpause", self.container(service))

    @contextmanager
    def cut(self, service: str, other: str) -> Iterator[None]:
        """The network between the two is gone: `service` leaves each that both are in, and comes
        back to them at the end."""
        container = self.container(service)
        own, others = (
            self.inspect(name)["NetworkSettings"]["Networks"] for name in (service, other)
        )
        common = {name: own[name]["Aliases"] or [] for name in own.keys() & others.keys()}
        assert common, f"{service} and {other} have no network in common"
        try:
            for network in common:
                self._engine.docker("network", "disconnect", network, container)
            yield
        finally:
            for network, names in common.items():
                aliases = [word for name in {service, *names} for word in ("--alias", name)]
                self._engine.docker("network", "connect", *aliases, network, container)

    def wait_healthy(self, service: str) -> None:
        """Raises AssertionError when it does not become so."""

        def healthy() -> bool:
            state = self.inspect(service)["State"]
            return bool(state.get("Health", {"Status": "healthy"})["Status"] == "healthy")

        self.until(f"{service} to be healthy", healthy)

    def logs(self, service: str) -> str:
        """What the service's container wrote, both streams."""
        command = ("docker", "logs", self.container(service))
        done = run(*command, seconds_max=60.0, env=self._engine.env)
        return done.stdout + done.stderr

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What Prometheus answers: series with their values."""
        address = f"http://127.0.0.1:9090/api/v1/query?{urlencode({'query': expression})}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(address, timeout=30) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return found

    def series(self, expression: str) -> float | None:
        """The same of one value; None where there is none."""
        found = self.query(expression)
        return float(found[0]["value"][1]) if found else None

    def until(self, what: str, there: Callable[[], bool]) -> None:
        """Waits for it. Raises AssertionError."""
        deadline = time.monotonic() + HEALTHY_SECONDS_MAX
        while time.monotonic() < deadline:
            if there():
                return
            time.sleep(1.0)
        raise AssertionError(f"waited {HEALTHY_SECONDS_MAX:.0f} s for {what}")

    def _wanted(self) -> list[str]:
        services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
        shared = {name for name, said in services.items() if "cpu" in said.get("profiles", ["cpu"])}
        return sorted(shared - self.left_out)

    def _compose(self, *words: str, seconds_max: float = 60.0) -> str:
        command = (*self._engine.compose, "--project-name", self._project)
        file = ("--file", str(ROOT / "docker-compose.yml"))
        done = run(*command, *file, *words, seconds_max=seconds_max, env=self._engine.env)
        return done.stdout
