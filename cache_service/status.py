"""The one table: our errors -> gRPC status. Applied by `kvtier.serving`. Pure data.

A subclass inherits its parent's code, so every class is named here on purpose; a test walks both
trees and fails when one is missing.
"""

from grpc import StatusCode

from cache_service import errors
from kvtier.serving import StatusTable
from storage.errors import StorageError

__all__ = ["STATUS_TABLE"]

STATUS_TABLE: StatusTable = {
    errors.CacheError: StatusCode.INTERNAL,
    errors.KeySchemeMismatchError: StatusCode.FAILED_PRECONDITION,
    errors.InvalidNamespaceError: StatusCode.INVALID_ARGUMENT,
    errors.InvalidBlockSizeError: StatusCode.INVALID_ARGUMENT,
    errors.BlockTooLargeForArenaError: StatusCode.INVALID_ARGUMENT,
    errors.InvalidTransportError: StatusCode.INVALID_ARGUMENT,
    errors.TooManySessionsError: StatusCode.RESOURCE_EXHAUSTED,
    errors.SessionUnknownError: StatusCode.NOT_FOUND,
    errors.MalformedChainError: StatusCode.INVALID_ARGUMENT,
    errors.TooManyBlocksError: StatusCode.INVALID_ARGUMENT,
    errors.TooManyLeasesError: StatusCode.RESOURCE_EXHAUSTED,
    errors.LeaseUnknownError: StatusCode.NOT_FOUND,
    errors.LeaseExpiredError: StatusCode.FAILED_PRECONDITION,
    errors.TooManyReservationsError: StatusCode.RESOURCE_EXHAUSTED,
    errors.ReservationUnknownError: StatusCode.NOT_FOUND,
    errors.ReservationExpiredError: StatusCode.FAILED_PRECONDITION,
    errors.ReservationIncompleteError: StatusCode.FAILED_PRECONDITION,
    errors.ChecksumCountMismatchError: StatusCode.INVALID_ARGUMENT,
    errors.ChecksumMismatchError: StatusCode.DATA_LOSS,
    errors.InvalidRangeError: StatusCode.OUT_OF_RANGE,
    errors.TicketRefusedError: StatusCode.UNAUTHENTICATED,
    errors.TooManyLanesError: StatusCode.RESOURCE_EXHAUSTED,
    errors.NoSsdTierError: StatusCode.FAILED_PRECONDITION,
    errors.VerifyRunningError: StatusCode.FAILED_PRECONDITION,
    errors.PurgeRunningError: StatusCode.FAILED_PRECONDITION,
    errors.NotEncryptedError: StatusCode.FAILED_PRECONDITION,
    errors.PrewarmRunningError: StatusCode.FAILED_PRECONDITION,
    errors.BlocksPinnedError: StatusCode.FAILED_PRECONDITION,
    errors.PinUnknownError: StatusCode.NOT_FOUND,
    errors.PinQuotaError: StatusCode.RESOURCE_EXHAUSTED,
    errors.TooManyPinsError: StatusCode.RESOURCE_EXHAUSTED,
    errors.RequestUnknownError: StatusCode.NOT_FOUND,
    errors.EventsLostError: StatusCode.OUT_OF_RANGE,
    errors.TooManyWatchersError: StatusCode.RESOURCE_EXHAUSTED,
    errors.WatcherStalledError: StatusCode.DEADLINE_EXCEEDED,
    errors.AcquireUnknownError: StatusCode.NOT_FOUND,
    errors.BlockNotCachedError: StatusCode.NOT_FOUND,
    # Nobody's call fails of it.
    errors.AttestationFailedError: StatusCode.INTERNAL,
    errors.AuditUnavailableError: StatusCode.UNAVAILABLE,
    errors.AuditLockedError: StatusCode.UNAVAILABLE,
    # The core turns a failing disk into misses; a storage error that gets here is our fault.
    StorageError: StatusCode.INTERNAL,
}
