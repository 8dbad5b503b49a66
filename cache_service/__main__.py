"""`python -m cache_service`: argv -> settings -> serve.

Exit status: 0 after a drain, 2 when the settings, the data directory or an address cannot be used;
then standard error has one line with the reason.
"""

import asyncio
import sys

from cache_service.server import serve
from cache_service.settings import ENV_PREFIX, CacheSettings
from kvtier.errors import KvtierError
from kvtier.log import setup_logging
from kvtier.settings import parse_command_line

__all__ = ["main"]

PROGRAM = "kvtier-cache"


def main(argv: list[str] | None = None) -> int:
    """Runs the service until it is told to stop; returns the exit status."""
    settings = parse_command_line(
        CacheSettings,
        program=PROGRAM,
        description="Keeps the KV blocks of prompt prefixes in host memory and on SSD.",
        env_prefix=ENV_PREFIX,
        argv=argv,
    )
    setup_logging(settings.log.level, settings.log.style)
    try:
        asyncio.run(serve(settings))
    except KvtierError as error:
        print(f"{PROGRAM}: {error.reason}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
