"""`python -m gateway`: argv -> settings -> serve. One ready line on standard output, logs on the
other; a start that fails ends with status 2 and the reason."""

import asyncio
import json
import logging
import sys
from collections.abc import Sequence

from gateway.server import start_gateway
from gateway.settings import ENV_PREFIX, GatewaySettings
from kvtier.errors import KvtierError
from kvtier.log import setup_logging
from kvtier.serving import until_signalled
from kvtier.settings import parse_command_line

__all__ = ["main"]

log = logging.getLogger("gateway")

START_FAILED = 2


def main(argv: Sequence[str] | None = None) -> int:
    settings = parse_command_line(
        GatewaySettings,
        program="kvtier-gateway",
        description="Lets callers in by API key: OpenAI's HTTP, and kvtier.v1 over gRPC.",
        env_prefix=ENV_PREFIX,
        argv=argv,
    )
    setup_logging(settings.log.level, settings.log.style)
    # What it says of its own life is said by ours.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        return asyncio.run(serve(settings))
    except KvtierError as error:
        print(f"kvtier-gateway: {error.reason}: {error}", file=sys.stderr, flush=True)
        return START_FAILED


async def serve(settings: GatewaySettings) -> int:
    """Runs until a signal asks for the end. Raises KvtierError when the start fails."""
    gateway = await start_gateway(settings)
    signalled = asyncio.ensure_future(until_signalled())
    ready = {
        "ready": True,
        "listen": gateway.listen,
        "grpc_listen": gateway.grpc_listen,
        "metrics_listen": gateway.metrics_listen or None,
        "workers_ready": gateway.ready,
    }
    print(json.dumps(ready), flush=True)
    name = await signalled
    log.info("draining", extra={"signal": name})
    await gateway.drain()
    return 0


if __name__ == "__main__":
    sys.exit(main())
