"""From settings to a shared tier. Nothing is asked of its engine yet: one that is down is not asked
later either, and the service starts."""

import os

from cache_service.master_keys import read_master_key
from cache_service.settings import SharedSettings
from storage.errors import SharedStoreError
from storage.shared.mooncake_store import MooncakeOptions, open_mooncake_store
from storage.shared.object_store import open_object_store
from storage.shared.objects import ObjectStore
from storage.shared.sealing import Sealing
from storage.shared.tier import SharedLimits, SharedTier

__all__ = ["open_shared_tier"]

_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_SKIP_SIGNATURE")
"""Without any of these the library asks Amazon's machines for keys, for ever where there are none.
It reads them itself."""


def open_shared_tier(settings: SharedSettings) -> SharedTier | None:
    """None where none is set. Raises SharedStoreError, MasterKeyFileError."""
    if not settings.url:
        return None
    sealing = None
    if settings.key_file is not None:
        files = (settings.key_file, *settings.old_key_files)
        sealing = Sealing([read_master_key(path) for path in files])
    limits = SharedLimits(settings.find_timeout_seconds, settings.request_timeout_seconds)
    return SharedTier(_open_engine(settings), limits, sealing, settings.generation)


def _open_engine(settings: SharedSettings) -> ObjectStore:
    if settings.url.startswith("mooncake:"):
        mine = MooncakeOptions(int(settings.pool_bytes), settings.pool_protocol, settings.pool_host)
        return open_mooncake_store(settings.url, mine)
    options = {"endpoint": settings.endpoint, "region": settings.region}
    given = {name: value for name, value in options.items() if value}
    if settings.endpoint and not any(name in os.environ for name in _KEYS):
        raise SharedStoreError(
            f"no keys for {settings.endpoint}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            endpoint=settings.endpoint,
        )
    return open_object_store(settings.url, given)
