"""`kvtier up`: cache service, billing, worker and gateway on this machine, until Ctrl-C.

Everything for people goes to standard error; with --json standard output gets one object when the
services are ready. Main thread.
"""

import json
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from kvtier.cli.claim import check_addresses, claim_directory
from kvtier.cli.processes import LocalCluster, ServiceProcess, run_room_tool
from kvtier.cli.progress import step
from kvtier.errors import KvtierError

__all__ = ["up"]

DEFAULT_LISTEN = "127.0.0.1:7421"
LISTENS = {
    "cache": "127.0.0.1:7411",
    "billing": "127.0.0.1:7431",
    "gateway": "127.0.0.1:7441",
}
GATEWAY_GRPC_LISTEN = "127.0.0.1:7442"
ROOMS = ("cache", "billing", "worker", "gateway")
READY_SECONDS_MAX = 3600.0
"""A large checkpoint takes long to load; who waits sees it and has Ctrl-C."""

FAILED = 1
NOT_STARTED = 2


def up(
    directory: Annotated[
        Path, typer.Option("--directory", help="Where data and logs live.")
    ] = Path(".kvtier"),
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            help="A Hugging Face checkpoint's directory. Default: the demo checkpoint, made on the"
            " first start; its answers mean nothing.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    tenants: Annotated[
        str,
        typer.Option(
            "--tenants",
            help="Who may send requests: TENANT or TENANT/PROJECT, separated by commas.",
        ),
    ] = "default",
    listen: Annotated[str, typer.Option("--listen", help="The worker's address.")] = DEFAULT_LISTEN,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SERVICE.KEY=VALUE",
            help="A setting of cache, billing, worker or gateway, as in docs/settings.md; may be"
            " repeated: --set cache.ssd.capacity_bytes=20GiB --set billing.price_book=prices.toml",
        ),
    ] = None,
    json_output: Annotated[
        bool, typer.Option("--json", help="When ready, one JSON object with the addresses.")
    ] = False,
) -> None:
    """Start cache service, billing, worker and gateway here; Ctrl-C drains them."""
    console = Console(stderr=True, highlight=False)
    chosen = _split(settings or [])
    chosen["worker"] = {"listen": listen, "tenants": tenants} | chosen["worker"]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        try:
            stack.enter_context(claim_directory(directory))
            check_addresses(_addresses(chosen))
            cluster = LocalCluster(
                directory,
                model or _demo_checkpoint(console, directory / "demo-model"),
                worker_settings=chosen["worker"],
                cache_settings=chosen["cache"],
                billing_settings=chosen["billing"],
                gateway_settings={"grpc_listen": GATEWAY_GRPC_LISTEN} | chosen["gateway"],
                ready_seconds_max=READY_SECONDS_MAX,
            )
            stack.callback(_drain, console, cluster)
            services = _start(console, cluster)
            api_key = _first_key(cluster, tenants)
            _tell_ready(console, services, demo=model is None, api_key=api_key)
            if json_output:
                print(json.dumps(_ready_data(services, directory)), flush=True)
            _watch(console, services)
        except KeyboardInterrupt:
            return
        except KvtierError as error:
            console.print(f"kvtier up: {error}", style="red", markup=False, soft_wrap=True)
            raise typer.Exit(NOT_STARTED) from None


def _split(settings: Sequence[str]) -> dict[str, dict[str, object]]:
    """`SERVICE.KEY=VALUE` by service. The services judge keys and values."""
    chosen: dict[str, dict[str, object]] = {room: {} for room in ROOMS}
    for setting in settings:
        key, equals, value = setting.partition("=")
        room, dot, name = key.partition(".")
        if not equals or not dot or room not in ROOMS:
            raise typer.BadParameter(
                f"{setting}: write SERVICE.KEY=VALUE with SERVICE one of {', '.join(ROOMS)}",
                param_hint="--set",
            )
        chosen[room][name] = value
    return chosen


def _addresses(chosen: dict[str, dict[str, object]]) -> dict[str, str]:
    """Where the services will listen, by the option that changes it."""
    addresses = {
        f"--set {room}.listen=HOST:PORT": str(chosen[room].get("listen", default))
        for room, default in LISTENS.items()
    }
    grpc_listen = str(chosen["gateway"].get("grpc_listen", GATEWAY_GRPC_LISTEN))
    if grpc_listen:
        addresses["--set gateway.grpc_listen=HOST:PORT"] = grpc_listen
    return addresses | {"--listen HOST:PORT": str(chosen["worker"]["listen"])}


def _demo_checkpoint(console: Console, model: Path) -> Path:
    with step(console, "preparing the demo checkpoint") as say:
        run_room_tool("worker.demo_checkpoint", str(model), say=say)
    return model


def _start(console: Console, cluster: LocalCluster) -> dict[str, ServiceProcess]:
    services = {}
    for name, start, address in (
        ("billing", cluster.start_billing, LISTENS["billing"]),
        ("cache", cluster.start_cache, LISTENS["cache"]),
        ("worker", cluster.start_worker, DEFAULT_LISTEN),
        ("gateway", cluster.start_gateway, LISTENS["gateway"]),
    ):
        with step(console, f"starting {name}"):
            service = services[name] = start(address)
        console.print(
            f"{name:<8} {service.address:<21} log {service.log_path}", markup=False, soft_wrap=True
        )
    return services


def _first_key(cluster: LocalCluster, tenants: str) -> str:
    """An API key of the first tenant, made with the gateway's first start; empty: there were keys,
    or they are kept elsewhere."""
    file = cluster.directory / "gateway" / "keys.json"
    if file.exists() or {"keys_file", "data_directory"} & cluster.gateway_settings.keys():
        return ""
    organisation, _, project = tenants.partition(",")[0].split()[0].partition("/")
    words = ["--organisation", organisation, "--name", "kvtier up", "--file", str(file)]
    if project:
        words += ["--project", project.partition("/")[0]]
    said: list[str] = []
    run_room_tool("gateway.key_commands", "create", *words, say=said.append)
    return said[0]


def _tell_ready(
    console: Console, services: dict[str, ServiceProcess], demo: bool, api_key: str
) -> None:
    defaults = {**LISTENS, "worker": DEFAULT_LISTEN}
    at = {
        name: "" if service.address == defaults[name] else f" --address {service.address}"
        for name, service in services.items()
    }
    priced = at["billing"].replace("--address", "--billing")
    lines = [
        "",
        "Ready. In another terminal:",
        f"  kvtier generate 'def main():'{at['worker']}{priced}",
        f"  kvtier chat{at['worker']}{priced}",
        f"  kvtier cache stats{at['cache']}",
        f"  kvtier usage report{at['billing']}",
        "",
        f"For OpenAI's and DeepSeek's clients: base address http://{services['gateway'].address}/v1,"
        f" model {services['worker'].ready.get('model', '')}",
    ]
    if api_key:
        lines.append(f"An API key, shown this once: {api_key}")
    else:
        lines.append("API keys: kvtier keys list, kvtier keys create")
    if demo:
        lines.append("The demo checkpoint has random weights: what it answers means nothing.")
    lines.append("On loopback in clear, for development: everybody on this machine may call.")
    console.print("\n".join([*lines, "Ctrl-C drains and stops."]), markup=False, soft_wrap=True)


def _ready_data(services: dict[str, ServiceProcess], directory: Path) -> dict[str, object]:
    addresses = {f"{name}_address": service.address for name, service in services.items()}
    model = services["worker"].ready.get("model", "")
    return {"ready": True, **addresses, "model": model, "directory": str(directory)}


def _watch(console: Console, services: dict[str, ServiceProcess]) -> NoReturn:
    """Returns never: a service that ends by itself ends the command, which then drains."""
    while True:
        for name, service in services.items():
            if not service.running:
                status = service.process.returncode
                console.print(
                    f"kvtier up: {name} ended by itself (status {status}):"
                    f" {service.last_words() or 'it said nothing'}\nlog: {service.log_path}",
                    style="red",
                    markup=False,
                    soft_wrap=True,
                )
                raise typer.Exit(FAILED)
        time.sleep(0.5)


def _drain(console: Console, cluster: LocalCluster) -> None:
    """Lets requests end and writes end; a second Ctrl-C ends at once, which loses nothing."""
    try:
        with step(
            console, "draining: gateway, worker, cache, billing (Ctrl-C again stops at once)"
        ):
            cluster.stop()
        console.print("stopped")
    except KeyboardInterrupt:
        cluster.kill()
        console.print("stopped at once; the next start recovers what was left")
