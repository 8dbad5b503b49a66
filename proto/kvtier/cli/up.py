"""`kvtier up`: cache service, billing and worker on this machine, until Ctrl-C."""

import signal
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from kvtier.cli.processes import LocalCluster, ServiceStartError, run_room_tool

__all__ = ["up"]


def up(
    directory: Annotated[
        Path, typer.Option("--directory", help="Where data and logs live.")
    ] = Path(".kvtier"),
    model: Annotated[
        Path | None,
        typer.Option("--model", help="A Hugging Face checkpoint. Default: the demo checkpoint."),
    ] = None,
    tenants: Annotated[
        str, typer.Option("--tenants", help="Comma-separated names that may send requests.")
    ] = "default",
    listen: Annotated[str, typer.Option("--listen", help="The worker's address.")] = (
        "127.0.0.1:7421"
    ),
) -> None:
    """Start cache service, billing and worker here; Ctrl-C drains them."""
    console = Console(stderr=True)
    if model is None:
        model = directory / "demo-model"
        with console.status("preparing the demo checkpoint"):
            try:
                run_room_tool("worker.demo_checkpoint", str(model))
            except ServiceStartError as error:
                console.print(f"kvtier up: {error}", style="red", markup=False)
                raise typer.Exit(2) from None
    cluster = LocalCluster(directory, model, worker_settings={"tenants": tenants})
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    try:
        for name, start, address in (
            ("cache service", cluster.start_cache, "127.0.0.1:7411"),
            ("billing", cluster.start_billing, "127.0.0.1:7431"),
            ("worker", cluster.start_worker, listen),
        ):
            with console.status(f"starting {name}"):
                service = start(address)
            console.print(f"{name:<14} {service.address}   log {service.log_path}", markup=False)
        console.print(
            "\nReady. Try:  kvtier generate 'def main():'   or   kvtier chat"
            "\n             kvtier cache stats   kvtier usage report\nCtrl-C drains.",
            markup=False,
        )
        while all(s is not None and s.running for s in (cluster.cache, cluster.worker)):
            time.sleep(0.5)
        console.print("a service ended by itself; see its log", style="red")
        raise typer.Exit(1)
    except KeyboardInterrupt:
        console.print("draining")
    except ServiceStartError as error:
        console.print(f"kvtier up: {error}", style="red", markup=False)
        raise typer.Exit(2) from None
    finally:
        cluster.stop()
