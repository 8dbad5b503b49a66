"""A small SSD directory, byte for byte: what is written stays the same, and stays readable.

Frozen with the format. A new version rewrites the files, and a reviewer reads the difference:

    PYTHONPATH=.:proto python tests/golden/ssd/test_ssd_golden.py --rewrite
"""

import asyncio
import json
import random
import re
import shutil
import sys
import tempfile
from pathlib import Path

import rocksdict

from kvtier.keys import BlockHash, NamespaceId
from storage.ssd.key_ring import NO_ENCRYPTION, Encryption
from storage.ssd.tier import SsdTier
from storage.tier import NO_PARENT, PAGE_BYTES, BlockRecord
from tests.ssd.blocks import Block, append, read
from tests.ssd.faulty_env import FaultyEnv

HERE = Path(__file__).parent
PLAIN = HERE / "plain.json"
MIXED = HERE / "mixed.json"
ENCRYPTED = HERE / "encrypted.json"
UNITS = HERE / "units.json"
SEGMENT_BYTES = 6 * PAGE_BYTES
CAPACITY_BYTES = 4 * SEGMENT_BYTES

Golden = dict[str, dict[str, str]]


def _block(number: int, size: int, checksum: int) -> Block:
    """Spelled out, so that no other code's change moves the bytes."""
    payload = bytes((number + i // 7) % 251 if i % 2 == 0 else number for i in range(size))
    parent = BlockHash(bytes([number - 1]) * 32) if number > 1 else NO_PARENT
    namespace = NamespaceId(bytes(range(32)))
    record = BlockRecord(BlockHash(bytes([number]) * 32), parent, namespace, size, checksum)
    return Block(record, payload)


BLOCKS = [
    _block(1, 100, 0xFDFB5922F19BF824),
    _block(2, 4096, 0xE5FF63DD2D0C1124),
    _block(3, 4101, 0xD23A019FC35EF687),
    _block(4, 9000, 0x405D7B3239C5662E),
]
CODECS = ["none", "none", "planes_lz4", "zstd"]
OWNERS = ["acme/search", "", "acme", "bert"]
ON = Encryption((bytes(range(32)),))


def _opened(
    directory: Path, codec: str = "none", encryption: Encryption = NO_ENCRYPTION
) -> SsdTier:
    # Buffered, because pre-writing is a matter of timing; the seeds are what makes bytes repeat.
    env = FaultyEnv(
        refuse_direct=True,
        seeds=[0x0123456789ABCDEF, 0xFEDCBA9876543210, 0x1122334455667788],
        wall=1_700_000_000.0,
        randomness=random.Random(1),
    )
    return SsdTier.open(
        directory,
        capacity_bytes=CAPACITY_BYTES,
        segment_bytes=SEGMENT_BYTES,
        codec=codec,
        encryption=encryption,
        env=env,
    )


async def _write(directory: Path, codecs: list[str]) -> None:
    for b, codec in zip(BLOCKS, codecs, strict=True):
        tier = _opened(directory, codec)
        await append(tier, [b])
        await tier.close()


async def _write_encrypted(directory: Path) -> None:
    tier = _opened(directory, encryption=ON)
    await tier.append([(b.record, b.view()) for b in BLOCKS], (), OWNERS)
    await tier.close()


async def _write_units(directory: Path) -> None:
    """Owned blocks; a unit ends with the second from the start, with the third since later."""
    tier = _opened(directory)
    blocks = [(b.record, b.view()) for b in BLOCKS[:3]]
    await tier.append(blocks, (), ["acme"] * 3, {BLOCKS[1].hash})
    await tier.save_unit_ends([BLOCKS[2].hash])
    await tier.close()


def _dump(directory: Path) -> Golden:
    index = rocksdict.Rdict(str(directory / "index"), rocksdict.Options(raw_mode=True))
    rows = {bytes(k).hex(): bytes(v).hex() for k, v in index.items()}  # type: ignore[arg-type]
    index.close()
    pages: dict[str, str] = {}
    for file in sorted((directory / "segments").iterdir()):
        raw = file.read_bytes()
        for start in range(0, len(raw), PAGE_BYTES):
            page = raw[start : start + PAGE_BYTES]
            if any(page):
                pages[f"{file.name} {start}"] = _short(page)
    marker = (directory / "KVTIER-SSD").read_text()
    golden = {"marker": {"KVTIER-SSD": marker}, "index": rows, "pages": pages}
    keys = directory / "KEYS"
    return golden | ({"keys": {"KEYS": keys.read_text()}} if keys.exists() else {})


def _restore(golden: Golden, directory: Path) -> None:
    (directory / "segments").mkdir(parents=True)
    (directory / "KVTIER-SSD").write_text(golden["marker"]["KVTIER-SSD"])
    for name, text in golden.get("keys", {}).items():
        (directory / name).write_text(text)
    for number in range(CAPACITY_BYTES // SEGMENT_BYTES):
        (directory / "segments" / f"{number:06d}.seg").write_bytes(bytes(SEGMENT_BYTES))
    for place, page in golden["pages"].items():
        name, start = place.split()
        with (directory / "segments" / name).open("r+b") as file:
            file.seek(int(start))
            file.write(_long(page))
    index = rocksdict.Rdict(str(directory / "index"), rocksdict.Options(raw_mode=True))
    for key, value in golden["index"].items():
        index[bytes.fromhex(key)] = bytes.fromhex(value)
    index.close()


def _short(page: bytes) -> str:
    """Hex, with long runs of zeros as their count."""
    return re.sub("(?:00){16,}", lambda m: f" {len(m[0]) // 2}*0 ", page.hex())


def _long(page: str) -> bytes:
    return bytes.fromhex(re.sub(r" (\d+)\*0 ", lambda m: "00" * int(m[1]), page))


def _load(path: Path) -> Golden:
    golden: Golden = json.loads(path.read_text())
    return golden


async def test_blocks_are_written_as_the_same_bytes_for_ever(tmp_path) -> None:
    await _write(tmp_path, ["none"] * len(BLOCKS))
    assert _dump(tmp_path) == _load(PLAIN)


async def test_blocks_are_encrypted_to_the_same_bytes_for_ever(tmp_path) -> None:
    await _write_encrypted(tmp_path)
    assert _dump(tmp_path) == _load(ENCRYPTED)


async def test_an_encrypted_directory_is_read_for_ever(tmp_path) -> None:
    for lost in ("nothing", "index"):
        directory = tmp_path / lost
        _restore(_load(ENCRYPTED), directory)
        if lost == "index":
            shutil.rmtree(directory / "index")
        tier = _opened(directory, encryption=ON)
        found = tier.recovered()
        assert [found.owners[i] for i in found.owner_row.tolist()] == OWNERS
        assert [record for record, _ in found] == [b.record for b in BLOCKS]
        for b, (record, location) in zip(BLOCKS, found, strict=True):
            assert await read(tier, record, location) == b.payload
        await tier.close()


async def test_ends_of_units_are_the_same_bytes_for_ever_and_read(tmp_path) -> None:
    await _write_units(tmp_path / "written")
    assert _dump(tmp_path / "written") == _load(UNITS)
    for lost, expected in (("nothing", [False, True, True]), ("index", [False, True, False])):
        directory = tmp_path / lost
        _restore(_load(UNITS), directory)
        if lost == "index":
            shutil.rmtree(directory / "index")
        tier = _opened(directory)
        found = tier.recovered()
        assert found.hashes.tolist() == [b.hash for b in BLOCKS[:3]]
        assert found.unit_end.tolist() == expected
        await tier.close()


async def test_a_directory_of_every_codec_is_read_for_ever(tmp_path) -> None:
    """What compressors write may change with their versions; what was written must be read."""
    for lost in ("nothing", "index"):
        directory = tmp_path / lost
        _restore(_load(MIXED), directory)
        if lost == "index":
            shutil.rmtree(directory / "index")
        tier = _opened(directory)
        found = list(tier.recovered())
        assert [record for record, _ in found] == [b.record for b in BLOCKS]
        stored = [location.stored_bytes for _, location in found]
        assert stored[:2] == [100, 4096]
        assert max(stored[2:]) < PAGE_BYTES
        for b, (record, location) in zip(BLOCKS, found, strict=True):
            assert await read(tier, record, location) == b.payload
        assert tier.report.problems == () or lost == "index"
        await tier.close()


if __name__ == "__main__":
    assert sys.argv[1:] == ["--rewrite"], __doc__
    for path, codecs in ((PLAIN, ["none"] * len(BLOCKS)), (MIXED, CODECS)):
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(_write(Path(folder), codecs))
            path.write_text(json.dumps(_dump(Path(folder)), indent=1, sort_keys=True) + "\n")
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_write_encrypted(Path(folder)))
        ENCRYPTED.write_text(json.dumps(_dump(Path(folder)), indent=1, sort_keys=True) + "\n")
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_write_units(Path(folder)))
        UNITS.write_text(json.dumps(_dump(Path(folder)), indent=1, sort_keys=True) + "\n")
