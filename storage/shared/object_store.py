"""Object stores and directories as an engine, through `obstore`.

    file:///mnt/shared    a directory: NFS, CephFS, JuiceFS, 3FS
    s3://bucket/path      anything that speaks S3: AWS, Ceph, Swift, MinIO; keys from AWS_*
    gs://, az://          likewise

A write becomes visible whole: a directory gets a temporary file that is renamed, S3 has it so by
itself. Nothing is synced: what a crash tears is found by who reads it. The library works on threads
of its own and without the interpreter lock; its calls are cancelled when the caller is.

Invariant: every exception of the library or the system leaves as TierIOError; that a name is not
there is no error.
"""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from storage.errors import ObjectTooLargeError, SharedStoreError, TierIOError

if TYPE_CHECKING:
    import obstore.store

__all__ = ["ObstoreStore", "open_object_store"]

NAMES_AT_ONCE = 8
"""Each is a request of its own."""

_LABELS = {"file": "directory", "s3": "s3", "gs": "gcs", "az": "azure"}


def open_object_store(url: str, options: Mapping[str, str]) -> "ObstoreStore":
    """The engine at `url`; `options`: what the library takes for it, "endpoint" and so on.

    Nothing is asked over a network yet. Raises SharedStoreError.
    """
    try:
        import obstore.store
    except ImportError:
        raise SharedStoreError(
            "shared.url names an object store, and the package obstore is not installed: pip"
            " install 'kvtier[shared]'",
            url=url,
        ) from None
    parts = urlsplit(url)
    label = _LABELS.get(parts.scheme)
    if label is None:
        raise SharedStoreError(
            f"shared.url begins with {parts.scheme!r}; known are {', '.join(_LABELS)} and mooncake",
            url=url,
        )
    try:
        if parts.scheme == "file":
            path = Path(parts.path)
            if parts.netloc or not path.is_absolute():
                raise SharedStoreError("a directory is named as file:///PATH", url=url)
            store: Any = obstore.store.LocalStore(path, mkdir=True)
        else:
            store = obstore.store.from_url(url, **dict(options))  # type: ignore[call-overload]
    except SharedStoreError:
        raise
    except Exception as error:
        raise SharedStoreError(f"shared.url cannot be opened: {error}", url=url) from None
    return ObstoreStore(store, label)


class ObstoreStore:
    """`storage.shared.objects.ObjectStore` over a store of the library."""

    names_at_once = NAMES_AT_ONCE

    def __init__(self, store: "obstore.store.ObjectStore", label: str) -> None:
        self._store = store
        self.label = label

    async def exists(self, names: Sequence[str]) -> list[bool]:
        return list(await asyncio.gather(*map(self._there, names)))

    async def _there(self, name: str) -> bool:
        import obstore

        try:
            await obstore.head_async(self._store, name)
        except FileNotFoundError:
            return False
        except Exception as error:
            raise _failed("search", error) from None
        return True

    async def read(self, name: str, bytes_max: int) -> memoryview | None:
        import obstore

        try:
            result = await obstore.get_async(self._store, name)
            size = result.meta["size"]
            if size > bytes_max:
                raise ObjectTooLargeError(
                    f"the object has {size} bytes, at most {bytes_max} are read", size_bytes=size
                )
            return memoryview(await result.bytes_async())
        except FileNotFoundError:
            return None
        except ObjectTooLargeError:
            raise
        except Exception as error:
            raise _failed("read", error) from None

    async def write(self, name: str, content: memoryview) -> None:
        import obstore

        try:
            await obstore.put_async(self._store, name, content, use_multipart=False)
        except Exception as error:
            raise _failed("write", error) from None

    async def delete(self, names: Sequence[str]) -> None:
        import obstore

        # One by one: a directory stops a list at the first that is not there.
        results = await asyncio.gather(
            *(obstore.delete_async(self._store, name) for name in names), return_exceptions=True
        )
        for each in results:
            if isinstance(each, asyncio.CancelledError):
                raise each
            if isinstance(each, BaseException) and not isinstance(each, FileNotFoundError):
                raise _failed("delete", each)

    async def delete_below(self, prefix: str) -> int:
        import obstore

        count = 0
        try:
            async for part in obstore.list(self._store, prefix, chunk_size=500):
                await self.delete([each["path"] for each in part])
                count += len(part)
        except TierIOError:
            raise
        except Exception as error:
            raise _failed("list", error) from None
        return count

    async def close(self) -> None:
        return


def _failed(operation: str, error: BaseException) -> TierIOError:
    # The library's texts go over many lines, with the request's details.
    text = " ".join(str(error).split())[:300]
    return TierIOError(
        f"the shared tier refused a {operation}: {text or type(error).__name__}",
        operation=operation,
        cause="error",
    )
