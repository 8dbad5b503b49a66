"""An index that is being loaded has the machine to itself: nothing is compacted until it may be."""

import time
from pathlib import Path

from storage.ssd.format import FORMAT_VERSION
from storage.ssd.index import IndexBatch, MetaRow, SsdIndex

TRIGGER = 4
"""So many files without an order among them are what RocksDB compacts."""


def unordered_files(index: SsdIndex) -> int:
    return int(index._db.property_int_value("rocksdb.num-files-at-level0") or 0)


def test_nothing_is_compacted_before_it_may_be(tmp_path: Path) -> None:
    for open_count in range(TRIGGER):
        index = SsdIndex(tmp_path)  # each close leaves a file
        index.apply(IndexBatch(put_meta=MetaRow(FORMAT_VERSION, 1 << 20, open_count)))
        index.close()
    index = SsdIndex(tmp_path)
    index.load()
    time.sleep(0.05)
    assert unordered_files(index) == TRIGGER
    index.start_compaction()
    deadline = time.monotonic() + 10
    while unordered_files(index) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert unordered_files(index) == 0
    assert index.load().meta.open_count == TRIGGER - 1
    index.close()
