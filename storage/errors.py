"""Errors of the storage room.

StorageError
├── DataDirectoryError            the directory cannot be used
│   ├── DirectoryReadOnlyError
│   ├── DirectoryLockedError      another process has it open
│   ├── DirectoryFullError        the file system has no room for the configured capacity
│   ├── FormatTooNewError         written by a newer kvtier
│   ├── ForeignDirectoryError     holds files that are not kvtier's
│   ├── MasterKeyNeededError      encrypted blocks, and no key in the settings
│   ├── MasterKeyWrongError       no master key of the settings opens its data keys
│   └── DataKeysLostError         the file of data keys is damaged or gone
├── CapacityError                 settings that no tier can honour
├── BlockTooLargeError            a block does not fit an extent or a segment
├── CorruptBlockError             checksum, key or length do not match: the caller makes it a miss
├── SegmentsFullError             no free segment: recycle one first
├── ObjectTooLargeError           an engine has more under a name than was asked for: unread
├── SharedStoreError              the shared tier's settings name no engine that can be used
├── TierBusyError                too many calls wait for the tier: do without it this time
└── TierIOError                   the disk refused; the tier is read as absent
"""

from kvtier.errors import KvtierError

__all__ = [
    "BlockTooLargeError",
    "CapacityError",
    "CorruptBlockError",
    "DataDirectoryError",
    "DataKeysLostError",
    "DirectoryFullError",
    "DirectoryLockedError",
    "DirectoryReadOnlyError",
    "ForeignDirectoryError",
    "FormatTooNewError",
    "MasterKeyNeededError",
    "MasterKeyWrongError",
    "ObjectTooLargeError",
    "SegmentsFullError",
    "SharedStoreError",
    "StorageError",
    "TierBusyError",
    "TierIOError",
]


class StorageError(KvtierError):
    reason = "STORAGE"


class DataDirectoryError(StorageError):
    reason = "DATA_DIRECTORY"


class DirectoryReadOnlyError(DataDirectoryError):
    reason = "DATA_DIRECTORY_READ_ONLY"


class DirectoryLockedError(DataDirectoryError):
    reason = "DATA_DIRECTORY_LOCKED"


class DirectoryFullError(DataDirectoryError):
    reason = "DATA_DIRECTORY_FULL"


class FormatTooNewError(DataDirectoryError):
    reason = "FORMAT_TOO_NEW"


class ForeignDirectoryError(DataDirectoryError):
    reason = "DATA_DIRECTORY_FOREIGN"


class MasterKeyNeededError(DataDirectoryError):
    reason = "MASTER_KEY_NEEDED"


class MasterKeyWrongError(DataDirectoryError):
    reason = "MASTER_KEY_WRONG"


class DataKeysLostError(DataDirectoryError):
    reason = "DATA_KEYS_LOST"


class CapacityError(StorageError):
    reason = "CAPACITY"


class BlockTooLargeError(StorageError):
    reason = "BLOCK_TOO_LARGE"


class CorruptBlockError(StorageError):
    reason = "CORRUPT_BLOCK"


class SegmentsFullError(StorageError):
    reason = "SEGMENTS_FULL"


class ObjectTooLargeError(StorageError):
    reason = "OBJECT_TOO_LARGE"


class SharedStoreError(StorageError):
    reason = "SHARED_STORE"


class TierBusyError(StorageError):
    reason = "TIER_BUSY"


class TierIOError(StorageError):
    reason = "TIER_IO"
