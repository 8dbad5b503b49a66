"""Structured logs: one JSON object or one readable line per event, on standard error.

Ids go into fields (`log.info("session opened", extra={"session_id": ...})`); tokens, prompts and KV
bytes never. Set up once per process on the main thread.
"""

import json
import logging
import sys
import time
from typing import Literal

__all__ = ["setup_logging"]

_PLAIN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class _Formatter(logging.Formatter):
    def __init__(self, style: Literal["text", "json"]) -> None:
        super().__init__()
        self._json = style == "json"

    def format(self, record: logging.LogRecord) -> str:
        fields = {k: v for k, v in record.__dict__.items() if k not in _PLAIN}
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        stamp += f".{int(record.msecs):03d}Z"
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        if self._json:
            line = {
                "time": stamp,
                "level": record.levelname,
                "logger": record.name,
                "message": record.getMessage(),
                **fields,
            }
            if trace:
                line["trace"] = trace
            return json.dumps(line, default=str)
        tail = "".join(f" {k}={v}" for k, v in fields.items())
        head = f"{stamp} {record.levelname:<7} {record.name}: {record.getMessage()}{tail}"
        return f"{head}\n{trace}" if trace else head


def setup_logging(level: str = "INFO", style: Literal["text", "json"] = "text") -> None:
    """Sends all logs of this process to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(style))
    logging.basicConfig(level=level, handlers=[handler], force=True)
