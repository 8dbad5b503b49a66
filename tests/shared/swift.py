"""A real S3 server as processes: OpenStack Swift with its S3 face, one replica, files in a folder.

Debian has it: `apt-get install swift-proxy swift-account swift-container swift-object`. Where it is
not there its tests are skipped, loudly. Its programs run with the system's Python, not with ours.
"""

import base64
import hmac
import http.client
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

import pytest

__all__ = ["S3Server", "swift_server"]

READY_SECONDS_MAX = 60
PROGRAMS = ("swift-proxy-server", "swift-account-server", "swift-container-server")
ACCESS_KEY, SECRET_KEY = "test:tester", "testing"
BUCKET = "kvtier"

STORAGE = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
user = {user}
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
workers = 0
log_address = {folder}/nolog
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""

PROXY = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
user = {user}
swift_dir = {folder}
workers = 0
log_address = {folder}/nolog
[pipeline:main]
pipeline = catch_errors cache listing_formats s3api tempauth bulk slo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:1
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
[filter:bulk]
use = egg:swift#bulk
[filter:slo]
use = egg:swift#slo
"""


@dataclass(frozen=True, slots=True)
class S3Server:
    """What a client needs. `environment`: the keys, as AWS's tools take them."""

    endpoint: str
    url: str
    environment: dict[str, str]
    process: "subprocess.Popen[bytes]"
    """The one that clients talk to."""

    def pause(self) -> None:
        """To its clients a partition of the network."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@contextmanager
def swift_server(folder: Path) -> Iterator[S3Server]:
    if not all(map(shutil.which, (*PROGRAMS, "swift-object-server", "swift-ring-builder"))):
        pytest.skip(
            "a real S3 server is NOT TESTED here: apt-get install swift-proxy swift-account"
            " swift-container swift-object to have it tested"
        )
    (folder / "swift.conf").write_text("[swift-hash]\nswift_hash_path_suffix = tests\n")
    (folder / "devices" / "d1").mkdir(parents=True)
    with ExitStack() as stack:
        for kind in ("account", "container", "object"):
            port = _free_port()
            _ring(folder, kind, port)
            stack.enter_context(_server(folder, kind, STORAGE, port))
        port = _free_port()
        proxy = stack.enter_context(_server(folder, "proxy", PROXY, port))
        _make_bucket(port)
        endpoint = f"http://127.0.0.1:{port}"
        keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
        yield S3Server(endpoint, f"s3://{BUCKET}/shared", keys, proxy)


def _make_bucket(port: int) -> None:
    """By the old signature, which takes no library."""
    date = formatdate(usegmt=True)
    text = f"PUT\n\n\n{date}\n/{BUCKET}".encode()
    signature = base64.b64encode(hmac.digest(SECRET_KEY.encode(), text, "sha1")).decode()
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Date": date, "Authorization": f"AWS {ACCESS_KEY}:{signature}"}
    client.request("PUT", f"/{BUCKET}", headers=headers)
    answer = client.getresponse()
    assert answer.status == 200, answer.read()
    client.close()


def _ring(folder: Path, kind: str, port: int) -> None:
    builder = folder / f"{kind}.builder"
    for arguments in (
        ("create", "4", "1", "1"),
        ("add", f"r1z1-127.0.0.1:{port}/d1", "1"),
        ("rebalance",),
    ):
        command = ["swift-ring-builder", str(builder), *arguments]
        subprocess.run(command, check=True, capture_output=True, env=_environment(), timeout=60)


@contextmanager
def _server(
    folder: Path, kind: str, template: str, port: int
) -> Iterator["subprocess.Popen[bytes]"]:
    path = folder / f"{kind}-server.conf"
    user = pwd.getpwuid(os.getuid()).pw_name
    path.write_text(template.format(kind=kind, port=port, folder=folder, user=user))
    with (folder / f"{kind}.log").open("wb") as log:
        process = subprocess.Popen(
            [f"swift-{kind}-server", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=_environment(),
        )
    try:
        _await(port, process, folder / f"{kind}.log")
        yield process
    finally:
        process.kill()
        process.wait()


def _environment() -> dict[str, str]:
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/"}


def _await(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS_MAX
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            late = time.monotonic() >= deadline or process.poll() is not None
            assert not late, f"it does not listen: {log.read_text()[-2000:]}"
            time.sleep(0.05)
        else:
            return


def _free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port
