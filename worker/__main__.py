"""`python -m worker`: argv -> settings -> serve. One ready line on standard output, logs on the
other; a start that fails ends with status 2 and one line that says why."""

import asyncio
import json
import logging
import sys
from collections.abc import Sequence

from kvtier.errors import KvtierError
from kvtier.log import setup_logging
from kvtier.serving import until_signalled
from kvtier.settings import parse_command_line
from worker.settings import ENV_PREFIX, WorkerSettings

__all__ = ["main"]

log = logging.getLogger("worker")

START_FAILED = 2


def main(argv: Sequence[str] | None = None) -> int:
    settings = parse_command_line(
        WorkerSettings,
        program="kvtier-worker",
        description="Serves a Hugging Face checkpoint over gRPC, with its context cache and usage.",
        env_prefix=ENV_PREFIX,
        argv=argv,
    )
    setup_logging(settings.log.level, settings.log.style)
    try:
        return asyncio.run(serve(settings))
    except KvtierError as error:
        print(f"kvtier-worker: {error.reason}: {error}", file=sys.stderr, flush=True)
        return START_FAILED


async def serve(settings: WorkerSettings) -> int:
    """Runs until a signal asks for the end. Raises KvtierError when the start fails."""
    # Late: reading --help or a bad setting should not take the seconds that torch takes.
    from worker.server import start_worker

    worker = await start_worker(settings)
    signalled = asyncio.ensure_future(until_signalled())
    print(json.dumps({"ready": True, "listen": worker.listen, "model": worker.model}), flush=True)
    name = await signalled
    log.info("draining", extra={"signal": name})
    await worker.drain()
    return 0


if __name__ == "__main__":
    sys.exit(main())
