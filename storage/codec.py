"""Codecs: smaller bytes for a slow disk or link, and back, exactly.

    none         the payload
    planes_lz4   byte planes, LZ4: little smaller, cheapest to decode
    zstd         byte planes, Zstandard level 1: smallest

16-bit floats differ little in sign and exponent. Byte planes put those bytes side by side, and only
so do they shrink well: docs/adr/0005, benchmarks/bench_codec.py. Invariant: `decode` fills its
target with what `encode` was given, or raises; it never takes more memory than the target's size,
whatever the stored bytes claim. Numbers are frozen: they are on disk (docs/formats/segment.md). Any
thread; the interpreter lock is free in all heavy steps.
"""

import threading
from enum import IntEnum

import lz4.block
import numpy as np
import zstandard
from numpy.typing import NDArray

__all__ = ["Codec", "CodecError", "decode", "encode"]

ZSTD_LEVEL = 1
"""Level 3 encodes planes ten times slower, and its ratio is lower."""

_WINDOW_BYTES_MAX = 8 << 20
"""Beyond the payload's size; what level 1 makes stays far below."""


class Codec(IntEnum):
    """Its name in lower case is what settings say."""

    NONE = 0
    PLANES_LZ4 = 1
    ZSTD = 2

    @property
    def label(self) -> str:
        return self.name.lower()


class CodecError(Exception):
    """The stored bytes are not what the codec made. Stays inside the storage room."""


class _Contexts(threading.local):
    """Zstandard's contexts belong to one thread at a time."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=False)
        self.decompressor = zstandard.ZstdDecompressor()


_contexts = _Contexts()


def encode(codec: Codec, payload: memoryview) -> memoryview:
    """The stored form. May be longer than the payload; the caller then stores that instead."""
    if codec is Codec.NONE:
        return payload
    planes = _planes(payload).data
    if codec is Codec.PLANES_LZ4:
        return memoryview(lz4.block.compress(planes, store_size=False))
    return memoryview(_contexts.compressor.compress(planes))


def decode(codec: Codec, stored: memoryview, into: memoryview) -> None:
    """Fills `into`, which is exactly the payload's size. Raises CodecError."""
    if codec is Codec.NONE:
        if stored.nbytes != into.nbytes:
            raise CodecError(f"{stored.nbytes} bytes are stored for {into.nbytes}")
        into[:] = stored
        return
    unpack = _lz4_planes if codec is Codec.PLANES_LZ4 else _zstd_planes
    planes = unpack(stored, into.nbytes)
    if len(planes) != into.nbytes:
        raise CodecError(f"{len(planes)} bytes come out instead of {into.nbytes}")
    _join(planes, into)


def _lz4_planes(stored: memoryview, size_bytes: int) -> bytes:
    try:
        planes: bytes = lz4.block.decompress(stored, uncompressed_size=size_bytes)
    except lz4.block.LZ4BlockError as error:
        raise CodecError(str(error)) from None
    return planes


def _zstd_planes(stored: memoryview, size_bytes: int) -> bytes:
    try:
        # The decompressor reserves what the frame says, so the frame is asked first.
        frame = zstandard.get_frame_parameters(stored)
        if frame.content_size != size_bytes or frame.window_size > _WINDOW_BYTES_MAX + size_bytes:
            raise CodecError(f"a frame of {frame.content_size} bytes instead of {size_bytes}")
        return _contexts.decompressor.decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CodecError(str(error)) from None


def _planes(payload: memoryview) -> NDArray[np.uint8]:
    raw = np.frombuffer(payload, np.uint8)
    count = raw.size // 2
    elements = raw[: 2 * count].view("<u2")
    planes = np.empty(raw.size, np.uint8)
    # A cast that drops the high byte, and a shift: NumPy does these faster than strided copies.
    np.copyto(planes[:count], elements, casting="unsafe")
    np.copyto(planes[count : 2 * count], elements >> 8, casting="unsafe")
    planes[2 * count :] = raw[2 * count :]
    return planes


def _join(planes: bytes, into: memoryview) -> None:
    source = np.frombuffer(planes, np.uint8)
    target = np.frombuffer(into, np.uint8)
    count = source.size // 2
    elements = target[: 2 * count].view("<u2")
    np.left_shift(source[count : 2 * count], 8, out=elements, dtype=np.uint16)
    np.bitwise_or(elements, source[:count], out=elements)
    target[2 * count :] = source[2 * count :]
