"""The usage journal: what each request used, durable before its client is told.

    begin(request)  written before `started`            end(event)  synced before `usage`

Invariant: every request that began gets exactly one counted end; one whose end could not be written
is closed without charge, because its client was told that it failed. See `journal/journal.py`.
"""

import time
from collections.abc import Callable
from pathlib import Path

from journal.journal import Journal, JournalLimits
from journal.outbox import Outbox
from journal.segment import JournalFile
from worker.usage_event import AdmittedRequest, UsageEvent
from worker.usage_journal_format import USAGE_FORMAT

__all__ = ["UsageJournal", "UsageOutbox"]


class UsageJournal(Journal[AdmittedRequest, UsageEvent]):
    """Opens the directory, locks it and serves until `close`. Use from one event loop.

    `begin`, `end` and `submit` raise UsageJournalFailedError. Raises JournalLockedError,
    JournalDirectoryError.
    """

    def __init__(
        self,
        directory: Path,
        limits: JournalLimits | None = None,
        *,
        file: JournalFile | None = None,
        wall_clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        super().__init__(USAGE_FORMAT, directory, limits, file=file, wall_clock_ns=wall_clock_ns)


class UsageOutbox(Outbox[AdmittedRequest, UsageEvent]):
    """Events in the journal that billing does not have yet."""

    def __init__(
        self, directory: Path, acknowledged: int, durable_sequence: Callable[[], int]
    ) -> None:
        super().__init__(USAGE_FORMAT, directory, acknowledged, durable_sequence)
