"""The Prometheus page of a service: one HTTP server on a thread of its own."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, start_http_server

from kvtier.listening import AddressInUseError

__all__ = ["serve_metrics"]


def serve_metrics(address: str, registry: CollectorRegistry) -> tuple[str, Callable[[], None]]:
    """Serves on "HOST:PORT"; returns that with the port really bound, and what ends it.

    Ending waits for a scrape that is running, so not on a loop that the scrape asks. Raises
    AddressInUseError.
    """
    host, _, port = address.rpartition(":")
    try:
        server, thread = start_http_server(int(port), host, registry)
    except OSError as error:
        raise AddressInUseError(
            f"cannot serve metrics on {address}: {error.strerror}; choose another with"
            " --set metrics_listen=HOST:PORT",
            address=address,
        ) from error

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return f"{host}:{server.server_port}", stop
