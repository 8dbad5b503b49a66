"""The SSD tier: recycled segment files for payload, RocksDB for the index.

Goals: bytes straight between the arena and the disk (O_DIRECT, no copy), write amplification near
one, exact capacity, every acknowledged block back after a kill, never a wrong byte.

Non-goals: which block should be here, or leave: the owner decides (`recycle`, `relog`, `forget`).
Durability of what was not acknowledged: a lost tail is a miss.

    tier.py       the async face; bounded threads
    directory.py  lock, marker, segment files of the right number and size
    recovery.py   directory -> blocks that can be read, and a report
    lineage.py    parents before children, and who is stranded    (pure)
    segments.py   each segment's state; owned by the writer
    planning.py   which part of a batch goes into which segment   (pure)
    encoding.py   a block as it will lie on the disk              (pure)
    encoder.py    the same for a batch, on threads
    buffer_pool.py  memory to encrypt into
    encryption.py AES-256-GCM of stored bytes                     (pure)
    key_file.py   data keys on the disk                           (pure)
    key_ring.py   data keys: made, counted, found, destroyed
    key_opening.py  which keys a directory is opened with
    writer.py     append, forget, relog, recycle, pre-write; one thread
    reader.py     read and verify
    scrub.py      verify what lives, within a budget, behind readers
    codec_selector.py  which codec new blocks get
    files.py      aligned buffers, whole reads and writes
    index.py      RocksDB rows
    format.py     bytes on disk, paths
"""

__all__: list[str] = []
