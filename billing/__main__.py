"""`python -m billing`: argv -> settings -> serve. One ready line on standard output, logs on the
other; a start that fails ends with status 2 and the reason."""

import asyncio
import json
import logging
import sys
from collections.abc import Sequence

from billing.server import start_billing
from billing.settings import ENV_PREFIX, BillingSettings
from kvtier.errors import KvtierError
from kvtier.log import setup_logging
from kvtier.serving import until_signalled
from kvtier.settings import parse_command_line

__all__ = ["main"]

log = logging.getLogger("billing")

START_FAILED = 2


def main(argv: Sequence[str] | None = None) -> int:
    settings = parse_command_line(
        BillingSettings,
        program="kvtier-billing",
        description="Keeps the ledger: takes usage events, each once for ever, and prices them.",
        env_prefix=ENV_PREFIX,
        argv=argv,
    )
    setup_logging(settings.log.level, settings.log.style)
    try:
        return asyncio.run(serve(settings))
    except KvtierError as error:
        print(f"kvtier-billing: {error.reason}: {error}", file=sys.stderr, flush=True)
        return START_FAILED


async def serve(settings: BillingSettings) -> int:
    """Runs until a signal asks for the end. Raises KvtierError when the start fails."""
    billing = await start_billing(settings)
    signalled = asyncio.ensure_future(until_signalled())
    print(json.dumps({"ready": True, "listen": billing.listen}), flush=True)
    name = await signalled
    log.info("draining", extra={"signal": name})
    await billing.drain()
    return 0


if __name__ == "__main__":
    sys.exit(main())
