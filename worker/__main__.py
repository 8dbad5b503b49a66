"""`python -m worker`: argv -> settings -> serve. One ready line on standard output, logs on the
other; a start that fails ends with status 2 and one line that says why, a failed engine with 3."""

import asyncio
import json
import logging
import sys
from collections.abc import Sequence

from kvtier.errors import KvtierError
from kvtier.log import setup_logging
from kvtier.serving import until_signalled
from kvtier.settings import parse_command_line
from kvtier.tls import check_listeners
from worker.peers import peers_of
from worker.settings import ENV_PREFIX, WorkerSettings
from worker.transformers_version import check_transformers

__all__ = ["main"]

log = logging.getLogger("worker")

START_FAILED = 2
ENGINE_FAILED = 3


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
    """Runs until a signal asks for the end, or the engine gave up: a worker that refuses everything
    must not look alive. Raises KvtierError when the start fails.
    """
    check_listeners(settings.addresses, settings.security)
    peers_of(settings)
    check_transformers()
    # Late: reading --help or a bad setting should not take the seconds that torch takes.
    from worker.server import start_worker

    worker = await start_worker(settings)
    signalled = asyncio.ensure_future(until_signalled())
    print(json.dumps({"ready": True, "listen": worker.listen, "model": worker.model}), flush=True)
    failed = asyncio.ensure_future(worker.failed.wait())
    await asyncio.wait((signalled, failed), return_when=asyncio.FIRST_COMPLETED)
    status = 0
    if signalled.done():
        log.info("draining", extra={"signal": signalled.result()})
    else:
        status = ENGINE_FAILED
        log.error("the engine failed; the worker ends, so that whoever watches it starts another")
    await worker.drain()
    return status


if __name__ == "__main__":
    sys.exit(main())
