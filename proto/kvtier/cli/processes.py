"""Services as separate processes on this machine, with embedded defaults.

A service is `python -m <room>`; it prints one JSON line when it serves and logs to a file here.
`LocalCluster` starts cache service, billing, worker and (where wanted) gateway in that order
and stops them in the reverse one. Owned by one thread; every wait has a bound.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvtier.errors import KvtierError

__all__ = ["LocalCluster", "ServiceProcess", "ServiceStartError", "run_room_tool"]

READY_SECONDS_MAX = 90.0
STOP_SECONDS_MAX = 30.0
"""A worker's own bounds on its drain add up to less, with the default settings."""

LAST_WORDS_MAX = 20

DEVELOPMENT = {"security.development": "true"}


class ServiceStartError(KvtierError):
    """A service ended, or said nothing, before it was ready; the message has its last words."""

    reason = "SERVICE_START"


@dataclass(slots=True)
class ServiceProcess:
    """One running `python -m <room>`."""

    room: str
    log_path: Path
    process: "subprocess.Popen[bytes]"
    log_offset: int = 0
    """Where this start's words begin in the log."""
    ready: dict[str, Any] = field(default_factory=dict)
    """What the service said when it was ready; "listen" is its address."""

    @property
    def address(self) -> str:
        return str(self.ready["listen"])

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.process.kill()
        self.process.wait()
        self._close()

    def stop(self) -> None:
        """SIGTERM, a bounded wait for the drain, then kill -9."""
        if self.running:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._close()

    def last_words(self) -> str:
        """What it wrote to its log last, since this start."""
        return _last_words(self.log_path, self.log_offset)

    def _close(self) -> None:
        if self.process.stdout is not None:
            self.process.stdout.close()


def start_service(
    room: str,
    settings: Mapping[str, object],
    log_path: Path,
    ready_seconds_max: float = READY_SECONDS_MAX,
) -> ServiceProcess:
    """Starts `python -m room` and waits until it serves. Raises ServiceStartError.

    On loopback it goes without TLS (`security.development`) unless `settings` say otherwise; an
    address that others can reach it refuses all the same.
    """
    command = [sys.executable, "-m", room]
    for key, value in (DEVELOPMENT | dict(settings)).items():
        command += ["--set", f"{key}={value}"]
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("ab") as log:
        log_offset = log.tell()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            # Ctrl-C is for the command line, which then drains its services in order.
            start_new_session=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
    service = ServiceProcess(room, log_path, process, log_offset)
    try:
        service.ready = _await_ready(process, ready_seconds_max)
    except BaseException as error:
        service.kill()
        if isinstance(error, _NotReadyError):
            raise ServiceStartError(
                f"{room} did not start: {service.last_words() or error}\nlog: {log_path}",
                room=room,
            ) from None
        raise
    return service


class _NotReadyError(Exception):
    pass


def _await_ready(process: "subprocess.Popen[bytes]", seconds_max: float) -> dict[str, Any]:
    assert process.stdout is not None
    deadline = time.monotonic() + seconds_max
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not selector.select(timeout=0.1):
            if process.poll() is not None:
                break
            if time.monotonic() > deadline:
                raise _NotReadyError(f"not ready after {seconds_max:.0f} s")
    line = process.stdout.readline()
    try:
        ready = json.loads(line)
    except ValueError:
        process.wait()
        raise _NotReadyError(f"ended with status {process.returncode}") from None
    if not isinstance(ready, dict) or "listen" not in ready:
        raise _NotReadyError(f"said {line!r} instead of where it listens")
    return ready


def _last_words(log_path: Path, offset: int) -> str:
    """The message a service ended with, all of its lines; else the log's last line."""
    with log_path.open("rb") as log:
        log.seek(offset)
        lines = log.read().decode(errors="replace").strip().splitlines()[-LAST_WORDS_MAX:]
    starts = [place for place, line in enumerate(lines) if line.startswith("kvtier-")]
    return "\n".join(lines[starts[-1] if starts else -1 :])


def run_room_tool(module: str, *arguments: str, say: Callable[[str], object] = str) -> None:
    """Runs `python -m module ...` to its end; `say` gets each line it prints.

    Raises ServiceStartError when it fails.
    """
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        ) as process,
    ):
        assert process.stdout is not None
        last = ""
        try:
            for line in process.stdout:
                last = line.strip()
                say(last)
        except BaseException:
            process.kill()
            raise
        if process.wait():
            errors.seek(0)
            words = errors.read().strip().splitlines()
            raise ServiceStartError(
                f"python -m {module} failed: {words[-1] if words else last}", module=module
            )


@dataclass(slots=True)
class LocalCluster:
    """The services on this machine, on loopback in clear (development).

    An address that others can reach is refused by its service until it has TLS settings.
    `directory` holds their data and logs and outlives them.
    """

    directory: Path
    model: Path
    worker_settings: dict[str, object] = field(default_factory=dict)
    cache_settings: dict[str, object] = field(default_factory=dict)
    billing_settings: dict[str, object] = field(default_factory=dict)
    gateway_settings: dict[str, object] = field(default_factory=dict)
    ready_seconds_max: float = READY_SECONDS_MAX
    cache: ServiceProcess | None = None
    billing: ServiceProcess | None = None
    worker: ServiceProcess | None = None
    gateway: ServiceProcess | None = None

    def start_cache(self, listen: str = "127.0.0.1:0") -> ServiceProcess:
        """Attests to billing, where that is started."""
        settings = {"listen": listen, "data_directory": self.directory / "cache"}
        if self.billing is not None:
            settings["billing.address"] = self.billing.address
        self.cache = self._start("cache_service", settings | self.cache_settings)
        return self.cache

    def start_billing(self, listen: str = "127.0.0.1:0") -> ServiceProcess:
        settings = {"listen": listen, "data_directory": self.directory / "billing"}
        self.billing = self._start("billing", settings | self.billing_settings)
        return self.billing

    def start_worker(self, listen: str = "127.0.0.1:0") -> ServiceProcess:
        """Needs cache and billing started."""
        assert self.cache is not None
        assert self.billing is not None
        settings = {
            "listen": listen,
            "model": self.model,
            "data_directory": self.directory / "worker",
            "cache.address": self.cache.address,
            "billing.address": self.billing.address,
        }
        self.worker = self._start("worker", settings | self.worker_settings)
        return self.worker

    def start_gateway(self, listen: str = "127.0.0.1:0") -> ServiceProcess:
        """Needs billing and the worker started."""
        assert self.worker is not None
        assert self.billing is not None
        settings = {
            "listen": listen,
            "workers": self.worker.address,
            "billing.address": self.billing.address,
            "data_directory": self.directory / "gateway",
        }
        self.gateway = self._start("gateway", settings | self.gateway_settings)
        return self.gateway

    def stop(self) -> None:
        """Drains in the order gateway, worker, cache, billing."""
        for service in (self.gateway, self.worker, self.cache, self.billing):
            if service is not None:
                service.stop()

    def kill(self) -> None:
        """kill -9 of what still runs: nothing is lost, the next start only recovers longer."""
        for service in (self.gateway, self.worker, self.cache, self.billing):
            if service is not None:
                service.kill()

    def _start(self, room: str, settings: Mapping[str, object]) -> ServiceProcess:
        log_path = self.directory / "logs" / f"{room}.log"
        return start_service(room, settings, log_path, self.ready_seconds_max)
