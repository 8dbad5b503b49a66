"""How fast are the SSD tier's store and restore, and a restart, compared with what the disk gives?

    python benchmarks/bench_storage.py [--directory DIR] [--quick] [--json]

The same as `kvtier bench storage`; fio is measured beside it where it is installed.
"""

import typer

from cache_service.bench.storage import storage

if __name__ == "__main__":
    typer.run(storage)
