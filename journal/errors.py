"""Errors of the journal room: a directory that cannot be a journal's.

    JournalError
    ├── JournalLockedError           another process has the journal open
    └── JournalDirectoryError        the journal's directory cannot be used
        └── JournalTooNewError       written by a newer kvtier

Reasons are frozen once released. What a record that could not be written means to a caller is its
journal's own: `Dialect.failure`.
"""

from kvtier.errors import KvtierError

__all__ = ["JournalDirectoryError", "JournalError", "JournalLockedError", "JournalTooNewError"]


class JournalError(KvtierError):
    reason = "JOURNAL"


class JournalLockedError(JournalError):
    reason = "JOURNAL_LOCKED"


class JournalDirectoryError(JournalError):
    reason = "JOURNAL_DIRECTORY"


class JournalTooNewError(JournalDirectoryError):
    reason = "FORMAT_TOO_NEW"
