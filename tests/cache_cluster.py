"""A cache service process for tests of whole models, with both tiers."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvtier.cli.processes import LocalCluster

__all__ = ["cache_cluster"]


@contextmanager
def cache_cluster() -> Iterator[LocalCluster]:
    """Nothing is started yet; what was is killed at the end. Loads may take their time."""
    with tempfile.TemporaryDirectory(prefix="kvt-") as directory:  # sockets need a short path
        cluster = LocalCluster(
            Path(directory),
            Path("no-model"),
            cache_settings={
                "host.capacity_bytes": "128MiB",
                "ssd.capacity_bytes": "128MiB",
                "ssd.segment_bytes": "16MiB",
                "limits.load_timeout_seconds": 60,
            },
        )
        try:
            yield cluster
        finally:
            cluster.kill()
