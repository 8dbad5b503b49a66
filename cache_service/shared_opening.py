"""From settings to a shared tier. Nothing is asked of its engine yet: one that is down is not asked
later either, and the service starts."""

from cache_service.master_keys import read_master_key
from cache_service.settings import SharedSettings
from storage.shared.mooncake_store import MooncakeOptions, open_mooncake_store
from storage.shared.object_store import open_object_store
from storage.shared.objects import ObjectStore
from storage.shared.sealing import Sealing
from storage.shared.tier import SharedLimits, SharedTier

__all__ = ["open_shared_tier"]


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
    if settings.endpoint.startswith("http://"):
        given["allow_http"] = "true"
    return open_object_store(settings.url, given)
