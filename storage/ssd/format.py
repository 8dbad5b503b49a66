"""Bytes of segments and records, and every path of the data directory. See docs/formats/segment.md.

    segment = header page | record | record | ... | zeros or records of older generations
    record  = header page | stored bytes rounded up to whole pages

Invariant: what `parse_*` accepts is exactly what `pack_*` wrote, for this segment, generation, seed
and offset. All constants are frozen: they are on disk. Pure functions, any thread.
"""

import json
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import xxhash

from kvtier.keys import BlockHash, NamespaceId
from storage.codec import Codec
from storage.errors import FormatTooNewError
from storage.ssd.encryption import KEY_ID_BYTES, NONCE_BYTES, TAG_BYTES, Encrypted
from storage.tier import PAGE_BYTES, BlockRecord, SegmentId, SsdLocation, rounded

__all__ = [
    "ENCRYPTED_FORMAT_VERSION",
    "FORMAT_VERSION",
    "INDEX_DIRECTORY",
    "KEY_FILE",
    "LOCK_FILE",
    "MARKER_FILE",
    "OWNER_BYTES_MAX",
    "SEGMENT_COUNT_MAX",
    "SEGMENT_DIRECTORY",
    "TEMPORARY_SUFFIX",
    "BadPageError",
    "Marker",
    "RawPages",
    "RecordHeader",
    "SegmentHeader",
    "pack_marker",
    "pack_record_header",
    "pack_segment_header",
    "parse_marker",
    "parse_record_header",
    "parse_segment_header",
    "parse_segment_name",
    "record_bytes",
    "refuse_newer",
    "segment_path",
    "write_record_header",
]

FORMAT_VERSION = 2
ENCRYPTED_FORMAT_VERSION = 3
"""Of a directory with encrypted records, in the marker alone: who does not know them stays out."""
MARKER_FILE = "KVTIER-SSD"
KEY_FILE = "KEYS"
LOCK_FILE = "LOCK"
INDEX_DIRECTORY = "index"
SEGMENT_DIRECTORY = "segments"
TEMPORARY_SUFFIX = ".tmp"
SEGMENT_COUNT_MAX = 1_000_000
"""Six digits in a file name."""
OWNER_BYTES_MAX = 1538
"""Three names of 128 characters, at most 4 bytes each, and what is between them."""

_CODECS = frozenset(Codec)
_SEGMENT_NAME = re.compile(r"(\d{6})\.seg")
_SEGMENT_MAGIC = b"KVTSEGMT"
_RECORD_MAGIC = b"KVTRECRD"
_SEGMENT_FIELDS = struct.Struct("<8sIIQQQ")
_RECORD_FIELDS = struct.Struct("<8sIIQIIQQQQQ32s32s32s")
_CHECKSUM = struct.Struct("<Q")
_OWNER_LENGTH = struct.Struct("<H")
_OWNER_AT = _RECORD_FIELDS.size + _OWNER_LENGTH.size
_CLEAR, _AES_256_GCM = 0, 1
_ENCRYPTION_AT = 28
_ENCRYPTED = struct.Struct(f"<{KEY_ID_BYTES}s{NONCE_BYTES}s{TAG_BYTES}s")
_ENCRYPTED_AT = 1712
_CHECKED_BYTES = PAGE_BYTES - _CHECKSUM.size
_MARKS_AT = _CHECKED_BYTES - 8
_UNIT_END = 1
_BEFORE_OFFSET = struct.Struct("<8sIIQII")
_RAW_RECORD = struct.Struct(
    f"<{_BEFORE_OFFSET.size}sQ8xQQQ32s32s32s{_CHECKED_BYTES - _RECORD_FIELDS.size}xQ"
)
"""As `_RECORD_FIELDS`, but for the sequence number, and with the page's seal."""


class BadPageError(Exception):
    """A page is not the header it should be; the text says why. Stays inside the SSD room."""


@dataclass(frozen=True, slots=True)
class Marker:
    """What the marker file says of the directory."""

    format_version: int
    segment_bytes: int
    expiries: bool = False
    """Some of its blocks have, or had, an end."""

    @property
    def encrypted(self) -> bool:
        """Some of its blocks are, or were, encrypted."""
        return self.format_version == ENCRYPTED_FORMAT_VERSION


class SegmentHeader(NamedTuple):
    """First page of a segment."""

    segment_id: SegmentId
    generation: int
    segment_bytes: int
    seed: int
    """0 when the segment holds no records."""


class RecordHeader(NamedTuple):
    """First page of a record: the block, and where the record says it lies."""

    record: BlockRecord
    location: SsdLocation
    sequence: int
    codec: Codec = Codec.NONE
    owner: str = ""
    """Whose the block is, as its writer was told; empty: nobody's."""
    encrypted: Encrypted | None = None
    """None: in clear. As parsed, the checksum is still under its mask (`KeyRing.unmasked`)."""
    unit_end: bool = False
    """Whether a prefix unit ended with the block when the record was written."""


def record_bytes(stored_bytes: int) -> int:
    """Room a record takes: its header page and the stored bytes in whole pages."""
    return PAGE_BYTES + rounded(stored_bytes)


def segment_path(directory: Path, segment_id: SegmentId) -> Path:
    return directory / SEGMENT_DIRECTORY / f"{segment_id:06d}.seg"


def parse_segment_name(name: str) -> SegmentId | None:
    """The id in a segment's file name; None when it is not one."""
    match = _SEGMENT_NAME.fullmatch(name)
    return SegmentId(int(match[1])) if match else None


def pack_marker(marker: Marker) -> bytes:
    fields = {"format": marker.format_version, "segment_bytes": marker.segment_bytes}
    if marker.expiries:
        fields["expiries"] = True
    if marker.encrypted:
        fields["encrypted"] = True
    return json.dumps(fields).encode() + b"\n"


def parse_marker(raw: bytes) -> Marker:
    """Raises BadPageError when it is not ours, FormatTooNewError when it is newer."""
    try:
        fields = json.loads(raw)
        version = int(fields["format"])
        if version < 1:
            raise ValueError(f"format {version}")
        refuse_newer(version, ENCRYPTED_FORMAT_VERSION)
        expiries, encrypted = (bool(fields.get(name)) for name in ("expiries", "encrypted"))
        marker = Marker(version, int(fields["segment_bytes"]), expiries)
        if marker.encrypted != encrypted:
            # One bit lies between the two formats: each is said twice.
            raise ValueError(f"format {version}, encrypted {encrypted}")
        return marker
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadPageError(f"the marker does not parse: {error}") from None


def refuse_newer(version: int, newest: int = FORMAT_VERSION) -> None:
    if version > newest:
        raise FormatTooNewError(
            f"the data directory has format {version} and this kvtier knows up to {newest}:"
            " upgrade kvtier, or point it to another directory",
            format_version=version,
        )


def pack_segment_header(header: SegmentHeader) -> bytes:
    """One page."""
    fields = _SEGMENT_FIELDS.pack(
        _SEGMENT_MAGIC,
        FORMAT_VERSION,
        header.segment_id,
        header.generation,
        header.segment_bytes,
        header.seed,
    )
    return _sealed(fields, seed=0)


def parse_segment_header(page: memoryview, segment_id: SegmentId) -> SegmentHeader | None:
    """The header, or None for a page of zeros: a segment that was never opened.

    Raises BadPageError when it is damaged or another segment's, FormatTooNewError.
    """
    magic, version, found_id, generation, segment_bytes, seed = _SEGMENT_FIELDS.unpack_from(page)
    if magic == bytes(8) and not any(page):
        return None
    if magic != _SEGMENT_MAGIC:
        raise BadPageError("no segment header")
    _check_seal(page, seed=0)
    refuse_newer(version)
    if version != FORMAT_VERSION:
        raise BadPageError(f"the header is of format {version}")
    if found_id != segment_id:
        raise BadPageError(f"the header is of segment {found_id}")
    return SegmentHeader(segment_id, generation, segment_bytes, seed)


def pack_record_header(header: RecordHeader, seed: int) -> bytes:
    """One page; `seed` is the segment's."""
    page = bytearray(PAGE_BYTES)
    write_record_header(header, seed, memoryview(page))
    return bytes(page)


def write_record_header(header: RecordHeader, seed: int, page: memoryview) -> None:
    """As `pack_record_header`, into a page that holds zeros or another record's header."""
    record, location, sequence, codec, owner, encrypted, unit_end = header
    checksum = record.checksum
    if encrypted is not None or page[_ENCRYPTION_AT]:
        checksum ^= _write_encrypted(encrypted, page)
    _RECORD_FIELDS.pack_into(
        page,
        0,
        _RECORD_MAGIC,
        FORMAT_VERSION,
        codec,
        location.generation,
        location.segment_id,
        _CLEAR if encrypted is None else _AES_256_GCM,
        location.offset,
        sequence,
        record.payload_bytes,
        location.stored_bytes,
        checksum,
        record.namespace_id,
        record.block_hash,
        record.parent_hash,
    )
    _write_owner(owner, page)
    page[_MARKS_AT] = _UNIT_END if unit_end else 0
    seal = xxhash.xxh3_64_intdigest(page[:_CHECKED_BYTES], seed)
    _CHECKSUM.pack_into(page, _CHECKED_BYTES, seal)


def _write_encrypted(encrypted: Encrypted | None, page: memoryview) -> int:
    """The mask; 0 for none, over what another record left."""
    if encrypted is None:
        page[_ENCRYPTED_AT : _ENCRYPTED_AT + _ENCRYPTED.size] = bytes(_ENCRYPTED.size)
        return 0
    _ENCRYPTED.pack_into(page, _ENCRYPTED_AT, encrypted.key_id, encrypted.nonce, encrypted.tag)
    return encrypted.mask


def _write_owner(owner: str, page: memoryview) -> None:
    (before,) = _OWNER_LENGTH.unpack_from(page, _RECORD_FIELDS.size)
    if not owner and not before:
        return
    encoded = owner.encode()
    assert len(encoded) <= OWNER_BYTES_MAX
    _OWNER_LENGTH.pack_into(page, _RECORD_FIELDS.size, len(encoded))
    length = max(before, len(encoded))
    page[_OWNER_AT : _OWNER_AT + length] = encoded.ljust(length, b"\0")


def parse_record_header(
    page: memoryview, segment: SegmentHeader, offset: int, generation: int | None = None
) -> RecordHeader:
    """The header of the record at `offset` of `segment`.

    `generation` is the one the caller asks for, when it is not simply the segment's. Raises
    BadPageError for a page that is damaged, of another place, or of another generation.
    """
    # One tuple: naming fourteen fields by position is what the table in the format document is for.
    fields = _RECORD_FIELDS.unpack_from(page)
    magic, version, codec, found_generation, found_id, way, found_offset = fields[:7]
    if magic != _RECORD_MAGIC:
        raise BadPageError("no record header")
    wanted = segment.generation if generation is None else generation
    if found_generation != wanted:
        raise BadPageError(f"the record is of generation {found_generation}, not {wanted}")
    _check_seal(page, segment.seed)
    if version != FORMAT_VERSION or codec not in _CODECS or way > _AES_256_GCM:
        raise BadPageError(f"format {version}, codec {codec}, encryption {way} are not known here")
    if (found_id, found_offset) != (segment.segment_id, offset):
        raise BadPageError(f"the record belongs to segment {found_id}, offset {found_offset}")
    sequence, payload_bytes, stored_bytes, checksum, namespace_id, block_hash, parent = fields[7:]
    raw = stored_bytes == payload_bytes
    if (
        not 0 < stored_bytes <= payload_bytes
        or raw != (codec == Codec.NONE)
        or offset + record_bytes(stored_bytes) > segment.segment_bytes
        or PAGE_BYTES + record_bytes(payload_bytes) > segment.segment_bytes
    ):
        raise BadPageError(
            f"{stored_bytes} bytes of codec {codec} for {payload_bytes} cannot lie here"
        )
    location = SsdLocation(
        segment.segment_id, wanted, offset, payload_bytes, checksum, stored_bytes
    )
    record = BlockRecord(
        BlockHash(block_hash), BlockHash(parent), NamespaceId(namespace_id), payload_bytes, checksum
    )
    encrypted = Encrypted(*_ENCRYPTED.unpack_from(page, _ENCRYPTED_AT)) if way else None
    unit_end = bool(page[_MARKS_AT] & _UNIT_END)
    return RecordHeader(record, location, sequence, Codec(codec), _owner(page), encrypted, unit_end)


def _owner(page: memoryview) -> str:
    """Raises BadPageError."""
    (length,) = _OWNER_LENGTH.unpack_from(page, _RECORD_FIELDS.size)
    if not length:
        return ""
    if length > OWNER_BYTES_MAX:
        raise BadPageError(f"an owner of {length} bytes")
    try:
        return str(page[_OWNER_AT : _OWNER_AT + length], "utf-8")
    except UnicodeDecodeError:
        raise BadPageError("an owner that is no text") from None


class RawPages:
    """Header pages of records without codec that were read in a row. One thread.

    A read finds nearly always just the record it wants: that much is told for a whole row in a
    fraction of what `parse_record_header` takes for each, which says what else a page is.
    """

    def __init__(self, memory: memoryview) -> None:
        """`memory`: whole pages; what is read into it is looked at in place."""
        self.views = [memory[at : at + PAGE_BYTES] for at in range(0, memory.nbytes, PAGE_BYTES)]
        self._sealed = [view[:_CHECKED_BYTES] for view in self.views]

    def hold(
        self, segment: SegmentHeader, wanted: Sequence[tuple[BlockRecord, SsdLocation, object]]
    ) -> bool:
        """True when the first pages are the headers of exactly those records, in that order, of
        that generation of `segment`, whole, without codec."""
        segment_id, generation, _, seed = segment
        place = _BEFORE_OFFSET.pack(
            _RECORD_MAGIC, FORMAT_VERSION, Codec.NONE, generation, segment_id, 0
        )
        # `map` and not a loop: between two pages, memory that nothing has touched for long, runs
        # nothing of the interpreter's.
        seals = map(xxhash.xxh3_64_intdigest, self._sealed, repeat(seed, len(wanted)))
        for page, seal, (record, location, _) in zip(self.views, list(seals), wanted, strict=False):
            block_hash, parent_hash, namespace_id, size, checksum = record
            offset = location[2]
            sizes = (size, size, checksum)
            names = (namespace_id, block_hash, parent_hash)
            if location != (segment_id, generation, offset, size, checksum, size):
                return False
            if _RAW_RECORD.unpack_from(page) != (place, offset, *sizes, *names, seal):
                return False
        return True


def _sealed(fields: bytes, seed: int) -> bytes:
    body = fields.ljust(_CHECKED_BYTES, b"\0")
    return body + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(body, seed))


def _check_seal(page: memoryview, seed: int) -> None:
    (expected,) = _CHECKSUM.unpack_from(page, _CHECKED_BYTES)
    if xxhash.xxh3_64_intdigest(page[:_CHECKED_BYTES], seed) != expected:
        raise BadPageError("the header's checksum does not match")
