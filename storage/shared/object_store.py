"""Object stores and directories as an engine, through `obstore`.

    file:///mnt/shared    a directory: NFS, CephFS, JuiceFS, 3FS
    s3://bucket/path      anything that speaks S3: AWS, Ceph, Swift, MinIO; keys from AWS_*
    gs://, az://          likewise

A write becomes visible whole: a directory gets a temporary file that is renamed, S3 has it so by
itself. Nothing is synced: what a crash tears is found by who reads it. The temporary file of a
writer that was killed goes when all around it is deleted, or by the directory's own expiry. The
library works on threads of its own and without the interpreter lock; its calls are cancelled when
the caller is.

Invariant: every exception of the library or the system leaves as TierIOError, a panic of the
library's too; that a name is not there is no error.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from storage.errors import ObjectTooLargeError, SharedStoreError, StorageError, TierIOError

if TYPE_CHECKING:
    import obstore.store

__all__ = ["ObstoreStore", "open_object_store"]

NAMES_AT_ONCE = 8
"""Each is a request of its own."""

_LABELS = {"file": "directory", "s3": "s3", "gs": "gcs", "az": "azure"}


def open_object_store(url: str, options: Mapping[str, str]) -> "ObstoreStore":
    """The engine at `url`; `options`: "endpoint" and "region" of an S3 server, where given.

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
    if parts.scheme == "file":
        path = Path(parts.path)
        if parts.netloc or not path.is_absolute():
            raise SharedStoreError("a directory is named as file:///PATH", url=url)
        store = _opened(url, lambda: obstore.store.LocalStore(path, mkdir=True))
        return ObstoreStore(store, label, path)
    if not parts.netloc:
        raise SharedStoreError(f"name a bucket: {parts.scheme}://BUCKET/PATH", url=url)
    endpoint = options.get("endpoint", "")
    if endpoint:
        _check_endpoint(parts.scheme, endpoint)
    client = {"allow_http": endpoint.startswith("http://")}
    opening: Any = obstore.store.from_url
    return ObstoreStore(_opened(url, lambda: opening(url, client_options=client, **options)), label)


def _check_endpoint(scheme: str, endpoint: str) -> None:
    """Raises SharedStoreError."""
    if scheme != "s3":
        raise SharedStoreError(
            f"shared.endpoint is for s3://, and shared.url begins with {scheme}://: unset it",
            endpoint=endpoint,
        )
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SharedStoreError(
            f"shared.endpoint is {endpoint!r}; write it as https://HOST:PORT", endpoint=endpoint
        )


def _opened(url: str, opening: Callable[[], Any]) -> Any:
    """Raises SharedStoreError."""
    try:
        return opening()
    except BaseException as error:
        if not _librarys(error):
            raise
        raise SharedStoreError(
            f"shared.url cannot be opened: {_one_line(error)}", url=url
        ) from None


class ObstoreStore:
    """`storage.shared.objects.ObjectStore` over a store of the library."""

    names_at_once = NAMES_AT_ONCE

    def __init__(
        self, store: "obstore.store.ObjectStore", label: str, folder: Path | None = None
    ) -> None:
        """`folder`: of a directory."""
        self._store = store
        self._folder = folder
        self.label = label

    async def exists(self, names: Sequence[str]) -> list[bool]:
        return list(await asyncio.gather(*map(self._there, names)))

    async def _there(self, name: str) -> bool:
        import obstore

        try:
            with _told("search"):
                await obstore.head_async(self._store, name)
        except FileNotFoundError:
            return False
        return True

    async def read(self, name: str, bytes_max: int) -> memoryview | None:
        import obstore

        try:
            with _told("read"):
                result = await obstore.get_async(self._store, name)
                size = result.meta["size"]
                if size > bytes_max:
                    raise ObjectTooLargeError(
                        f"the object has {size} bytes, at most {bytes_max} are read",
                        size_bytes=size,
                    )
                return memoryview(await result.bytes_async())
        except FileNotFoundError:
            return None

    async def write(self, name: str, content: memoryview) -> None:
        import obstore

        try:
            with _told("write"):
                await obstore.put_async(self._store, name, content, use_multipart=False)
        except FileNotFoundError as error:
            raise _failed("write", error) from None
        except TierIOError:
            # Of writes at the same time Swift answers those that lost in a way that the library
            # takes for a failure. What is there is there.
            with contextlib.suppress(TierIOError):
                if await self._there(name):
                    return
            raise

    async def delete(self, names: Sequence[str]) -> None:
        # One by one: a directory stops a list at the first that is not there.
        results = await asyncio.gather(*map(self._delete, names), return_exceptions=True)
        for each in results:
            if each is not None:
                raise each

    async def _delete(self, name: str) -> None:
        import obstore

        with contextlib.suppress(FileNotFoundError), _told("delete"):
            await obstore.delete_async(self._store, name)

    async def delete_below(self, prefix: str) -> int:
        import obstore

        count = 0
        try:
            with _told("list"):
                async for part in obstore.list(self._store, prefix, chunk_size=500):
                    await self.delete([each["path"] for each in part])
                    count += len(part)
            if self._folder is not None:
                with _told("delete"):
                    await asyncio.to_thread(_delete_torn, self._folder / prefix)
        except FileNotFoundError as error:
            raise _failed("list", error) from None
        return count

    async def close(self) -> None:
        return


def _delete_torn(folder: Path) -> None:
    """Files of writers that were killed: NAME#NUMBER, which the library never lists."""
    for path in folder.rglob("*#*"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _told(operation: str) -> Iterator[None]:
    """What the library raises leaves as TierIOError, but that a name is not there."""
    try:
        yield
    except (FileNotFoundError, StorageError):
        raise
    except BaseException as error:
        if not _librarys(error):
            raise
        raise _failed(operation, error) from None


def _librarys(error: BaseException) -> bool:
    """False: the end of a call or of the process. A panic of the library is no Exception."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _failed(operation: str, error: BaseException) -> TierIOError:
    return TierIOError(
        f"the shared tier refused a {operation}: {_one_line(error)}",
        operation=operation,
        cause="error",
    )


def _one_line(error: BaseException) -> str:
    # The library's texts go over many lines, with the request's details.
    return " ".join(str(error).split())[:300] or type(error).__name__
