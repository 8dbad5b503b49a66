"""Errors of the cache_service room.

    CacheError
    ├── KeySchemeMismatchError       the client hashes by another scheme
    ├── InvalidNamespaceError        the namespace id is not 32 bytes
    ├── InvalidBlockSizeError        not positive, or another than this namespace's
    ├── BlockTooLargeForArenaError   a block does not fit the arena's extents
    ├── InvalidTransportError        no such transport, or not offered here
    ├── TooManySessionsError         session limit reached
    ├── SessionUnknownError          never opened, closed or expired
    ├── MalformedChainError          not whole hashes, empty, or a hash twice
    ├── TooManyBlocksError           more hashes than one call may carry
    ├── TooManyLeasesError           the session's lease limit is reached
    ├── LeaseUnknownError            no such lease in this session
    ├── LeaseExpiredError            its deadline passed
    ├── TooManyReservationsError     the session's limit is reached
    ├── ReservationUnknownError      no such reservation in this session
    ├── ReservationExpiredError      its deadline passed, nothing was kept
    ├── ReservationIncompleteError   a block was not received whole
    ├── ChecksumCountMismatchError   not one checksum a missing block
    ├── ChecksumMismatchError        bytes from the wire do not match
    ├── InvalidRangeError            outside the lease, reservation or block
    ├── TicketRefusedError           no session waits for this bulk ticket, from here
    ├── TooManyLanesError            bulk connections of one session, or of the service
    ├── NoSsdTierError               asked for what only an SSD tier can do
    ├── VerifyRunningError           one verify at a time
    ├── PurgeRunningError            one purge at a time
    ├── NotEncryptedError            a shred, and the SSD is in clear
    ├── PrewarmRunningError          one prewarm at a time
    ├── EventsLostError              a watcher's next event is not kept
    ├── TooManyWatchersError         the limit of watchers is reached
    ├── WatcherStalledError          a watcher took nothing for too long
    ├── AcquireUnknownError          no acquire of that request is remembered
    ├── BlocksPinnedError            pins name what is to be purged
    ├── PinUnknownError              no such pin, or it has ended
    ├── PinQuotaError                pins would name or hold too much
    ├── TooManyPinsError             the limit of pins is reached
    ├── RequestUnknownError          no store or acquire of that request is remembered
    ├── BlockNotCachedError          asked for what continues a block that is not there
    ├── AttestationFailedError       what leases served could not be written down
    └── AuditUnavailableError        the audit log cannot be written
        └── AuditLockedError         another service writes it

Codes: `cache_service/status.py`. Reasons are frozen once released.
"""

from kvtier.errors import KvtierError

__all__ = [
    "AcquireUnknownError",
    "AttestationFailedError",
    "AuditLockedError",
    "AuditUnavailableError",
    "BlockNotCachedError",
    "BlockTooLargeForArenaError",
    "BlocksPinnedError",
    "CacheError",
    "ChecksumCountMismatchError",
    "ChecksumMismatchError",
    "EventsLostError",
    "InvalidBlockSizeError",
    "InvalidNamespaceError",
    "InvalidRangeError",
    "InvalidTransportError",
    "KeySchemeMismatchError",
    "LeaseExpiredError",
    "LeaseUnknownError",
    "MalformedChainError",
    "NoSsdTierError",
    "NotEncryptedError",
    "PinQuotaError",
    "PinUnknownError",
    "PrewarmRunningError",
    "PurgeRunningError",
    "RequestUnknownError",
    "ReservationExpiredError",
    "ReservationIncompleteError",
    "ReservationUnknownError",
    "SessionUnknownError",
    "TicketRefusedError",
    "TooManyBlocksError",
    "TooManyLanesError",
    "TooManyLeasesError",
    "TooManyPinsError",
    "TooManyReservationsError",
    "TooManySessionsError",
    "TooManyWatchersError",
    "VerifyRunningError",
    "WatcherStalledError",
]


class CacheError(KvtierError):
    reason = "CACHE"


class KeySchemeMismatchError(CacheError):
    reason = "KEY_SCHEME_MISMATCH"


class InvalidNamespaceError(CacheError):
    reason = "INVALID_NAMESPACE"


class InvalidBlockSizeError(CacheError):
    reason = "INVALID_BLOCK_SIZE"


class BlockTooLargeForArenaError(CacheError):
    reason = "BLOCK_TOO_LARGE"


class InvalidTransportError(CacheError):
    reason = "INVALID_TRANSPORT"


class TooManySessionsError(CacheError):
    reason = "TOO_MANY_SESSIONS"


class SessionUnknownError(CacheError):
    reason = "SESSION_UNKNOWN"


class MalformedChainError(CacheError):
    reason = "MALFORMED_HASHES"


class TooManyBlocksError(CacheError):
    reason = "TOO_MANY_BLOCKS"


class TooManyLeasesError(CacheError):
    reason = "TOO_MANY_LEASES"


class LeaseUnknownError(CacheError):
    reason = "LEASE_UNKNOWN"


class LeaseExpiredError(CacheError):
    reason = "LEASE_EXPIRED"


class TooManyReservationsError(CacheError):
    reason = "TOO_MANY_RESERVATIONS"


class ReservationUnknownError(CacheError):
    reason = "RESERVATION_UNKNOWN"


class ReservationExpiredError(CacheError):
    reason = "RESERVATION_EXPIRED"


class ReservationIncompleteError(CacheError):
    reason = "RESERVATION_INCOMPLETE"


class ChecksumCountMismatchError(CacheError):
    reason = "CHECKSUM_COUNT_MISMATCH"


class ChecksumMismatchError(CacheError):
    reason = "CHECKSUM_MISMATCH"


class InvalidRangeError(CacheError):
    reason = "INVALID_RANGE"


class TicketRefusedError(CacheError):
    reason = "TICKET_REFUSED"


class TooManyLanesError(CacheError):
    reason = "TOO_MANY_LANES"


class NoSsdTierError(CacheError):
    reason = "NO_SSD_TIER"


class VerifyRunningError(CacheError):
    reason = "VERIFY_RUNNING"


class PrewarmRunningError(CacheError):
    reason = "PREWARM_RUNNING"


class PurgeRunningError(CacheError):
    reason = "PURGE_RUNNING"


class NotEncryptedError(CacheError):
    reason = "NOT_ENCRYPTED"


class BlocksPinnedError(CacheError):
    reason = "BLOCKS_PINNED"


class PinUnknownError(CacheError):
    reason = "PIN_UNKNOWN"


class PinQuotaError(CacheError):
    reason = "PIN_QUOTA"


class TooManyPinsError(CacheError):
    reason = "TOO_MANY_PINS"


class RequestUnknownError(CacheError):
    reason = "REQUEST_UNKNOWN"


class EventsLostError(CacheError):
    reason = "EVENTS_LOST"


class TooManyWatchersError(CacheError):
    reason = "TOO_MANY_WATCHERS"


class WatcherStalledError(CacheError):
    reason = "WATCHER_STALLED"


class AcquireUnknownError(CacheError):
    reason = "ACQUIRE_UNKNOWN"


class BlockNotCachedError(CacheError):
    reason = "BLOCK_NOT_CACHED"


class AttestationFailedError(CacheError):
    reason = "ATTESTATION_FAILED"


class AuditUnavailableError(CacheError):
    reason = "AUDIT_UNAVAILABLE"


class AuditLockedError(AuditUnavailableError):
    reason = "AUDIT_LOCKED"
