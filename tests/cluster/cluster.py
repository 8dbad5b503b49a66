"""Containers of `docker-compose.yml`, under a project name of their own. Blocks."""

import ipaddress
import json
import os
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.cluster.compose_file import CPU_SERVICES
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

    def another(self, name: str) -> "Cluster":
        """A project of its own on the same engine."""
        return Cluster(self._engine, f"{self._project}-{name}", self.left_out)

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

    def shell(self, line: str, directory: Path) -> str:
        """Runs a line as the documentation has it, with `docker compose` in it. What it printed."""
        line = re.sub(r"docker compose exec (?!-T)", "docker compose exec -T ", line)
        line = line.replace("docker compose", " ".join(self._engine.compose))
        env = {"COMPOSE_PROJECT_NAME": self._project, "COMPOSE_FILE": f"{ROOT}/docker-compose.yml"}
        command = ("sh", "-c", f"cd '{directory}' && {line}")
        return run(*command, seconds_max=240.0, env=self._engine.env | env).stdout

    def anew(self, service: str) -> None:
        """A container takes the place of the service's own, as for a new image; healthy."""
        self._compose(
            "up",
            "--detach",
            "--no-build",
            "--no-deps",
            "--force-recreate",
            service,
            seconds_max=UP_SECONDS_MAX,
        )
        self.wait_healthy(service)

    def mounts(self, service: str) -> list[dict[str, Any]]:
        """As the engine says them."""
        found: list[dict[str, Any]] = self.inspect(service)["Mounts"]
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
    def silence(self, service: str, other: str) -> Iterator[None]:
        """No packet passes between the two, and neither is told; all others reach both. A `service`
        that starts anew meanwhile is reached again."""
        process = self.inspect(service)["State"]["Pid"]
        inside = ("nsenter", "--target", str(process), "--net", "iptables", "--wait")
        others = self.inspect(other)["NetworkSettings"]["Networks"]
        rules = [
            (chain, side, others[name]["IPAddress"], "--jump", "DROP")
            for name in self._common_networks(service, other)
            for chain, side in (("INPUT", "--source"), ("OUTPUT", "--destination"))
        ]
        for rule in rules:
            run(*inside, "--append", *rule, seconds_max=30.0)
        try:
            yield
        finally:
            if self.inspect(service)["State"]["Pid"] == process:
                for rule in rules:
                    run(*inside, "--delete", *rule, seconds_max=30.0)

    @contextmanager
    def cut(self, service: str, other: str) -> Iterator[None]:
        """The network between the two is gone: `service` leaves each that both are in, and comes
        back to them at the end."""
        container = self.container(service)
        common = self._common_networks(service, other)
        try:
            for network in common:
                self._engine.docker("network", "disconnect", network, container)
            yield
        finally:
            for network, names in common.items():
                aliases = [word for name in {service, *names} for word in ("--alias", name)]
                self._engine.docker("network", "connect", *aliases, network, container)

    def prepare(self, service: str) -> None:
        """Makes the container of one that runs once, with its volumes, and starts it."""
        self._compose("up", "--detach", "--no-build", service)

    def run_to_its_end(self, service: str, step_seconds: float, runs_max: int) -> int:
        """Starts one that runs once again and again, and kills it a step later each time, until a
        run has ended by itself. How many were killed. Raises AssertionError."""
        container = self.container(service)
        for killed in range(runs_max):
            self._engine.docker("start", container)
            try:
                seconds_max = (killed + 1) * step_seconds
                done = self._engine.docker("wait", container, seconds_max=seconds_max)
            except subprocess.TimeoutExpired:
                self._engine.docker("kill", container, check=False)  # it may have ended just now
                done = self._engine.docker("wait", container)
            if done == "0":
                return killed
            assert done == str(128 + signal.SIGKILL), self.logs(service)
        raise AssertionError(f"{service} did not end in {runs_max} runs")

    def digests(self, service: str, *directories: str) -> list[str]:
        """Of the files in them, each with its name."""
        find = "find " + " ".join(directories) + " -type f -exec sha256sum {} +"
        return sorted(self.execute(service, "sh", "-c", find).splitlines())

    def beside(
        self, service: str, *command: str, network: str = "", volume: str = "", given: str = ""
    ) -> str:
        """Runs a command in a container of its own with the service's image and nothing of its
        secrets, in one network of the project or none, perhaps with a volume of it at /volume.
        What it printed."""
        image = self.inspect(service)["Config"]["Image"]
        words = ["run", "--rm", "--interactive", "--cap-drop=ALL"]
        words.append("--label=com.docker.compose.service=beside")  # an image has its service's own
        words.append(f"--network={self._project}_{network}" if network else "--network=none")
        if volume:
            words.append(f"--volume={self._project}_{volume}:/volume:ro")
        return self._engine.docker(*words, image, *command, given=given, seconds_max=120.0)

    def networks(self, service: str) -> dict[str, str]:
        """The service's address in each, by the names of the file."""
        found = self.inspect(service)["NetworkSettings"]["Networks"]
        prefix = f"{self._project}_"
        return {name.removeprefix(prefix): each["IPAddress"] for name, each in found.items()}

    def sockets(self, service: str, state: str) -> list[tuple[tuple[str, int], tuple[str, int]]]:
        """Its TCP sockets in that state of the kernel's: (address, port) here and there."""
        said = self.execute(service, "cat", "/proc/net/tcp", "/proc/net/tcp6")
        rows = [line.split() for line in said.splitlines()]
        return [(_end(row[1]), _end(row[2])) for row in rows if row[3] == state]

    def connections(self, service: str) -> list[tuple[str, str]]:
        """Addresses of both ends of what is connected, here and there."""
        return [(here[0], there[0]) for here, there in self.sockets(service, "01")]

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

    def _common_networks(self, service: str, other: str) -> dict[str, list[str]]:
        """The first one's names in each."""
        own, others = (
            self.inspect(name)["NetworkSettings"]["Networks"] for name in (service, other)
        )
        common = {name: own[name]["Aliases"] or [] for name in own.keys() & others.keys()}
        assert common, f"{service} and {other} have no network in common"
        return common

    def _wanted(self) -> list[str]:
        return [name for name in CPU_SERVICES if name not in self.left_out]

    def _compose(self, *words: str, seconds_max: float = 60.0) -> str:
        command = (*self._engine.compose, "--project-name", self._project)
        file = ("--file", str(ROOT / "docker-compose.yml"))
        done = run(*command, *file, *words, seconds_max=seconds_max, env=self._engine.env)
        return done.stdout


def _end(text: str) -> tuple[str, int]:
    """Of `0100007F:1F90` as the kernel writes it; an IPv4 address also of one that IPv6 holds."""
    digits, _, port = text.partition(":")
    words = [bytes.fromhex(digits[at : at + 8])[::-1] for at in range(0, len(digits), 8)]
    address = ipaddress.ip_address(b"".join(words))
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address), int(port, 16)
