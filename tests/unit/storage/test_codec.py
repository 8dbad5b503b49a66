"""Codecs: exact both ways, and nothing that was not encoded decodes to anything."""

import random
import threading
import tracemalloc

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from storage.codec import Codec, CodecError, decode, encode
from storage.codec_speed import measure_codec

CODECS = list(Codec)
PACKING = [Codec.PLANES_LZ4, Codec.ZSTD]


def there_and_back(codec: Codec, payload: bytes) -> bytes:
    into = memoryview(bytearray(len(payload)))
    decode(codec, encode(codec, memoryview(payload)), into)
    return bytes(into)


@pytest.mark.parametrize("codec", CODECS)
@given(payload=st.binary(min_size=1, max_size=5000))
def test_every_payload_comes_back(codec: Codec, payload: bytes) -> None:
    assert there_and_back(codec, payload) == payload


@pytest.mark.parametrize("codec", PACKING)
@pytest.mark.parametrize("size", [1, 2, 3, 4096, 65_535, 1 << 20])
def test_sixteen_bit_floats_shrink_and_odd_sizes_are_no_exception(codec: Codec, size: int) -> None:
    payload = bytearray(random.Random(size).randbytes(size))
    payload[1::2] = bytes([0x3F]) * (size // 2)
    assert there_and_back(codec, bytes(payload)) == payload
    if size >= 4096:
        assert encode(codec, memoryview(payload)).nbytes < 0.6 * size


@pytest.mark.parametrize("codec", PACKING)
@given(stored=st.binary(min_size=1, max_size=300), size=st.integers(1, 5000))
def test_garbage_never_fills_a_payload(codec: Codec, stored: bytes, size: int) -> None:
    """It is refused, or (LZ4 has no checksum) it decodes to so many bytes of nonsense."""
    try:
        decode(codec, memoryview(stored), memoryview(bytearray(size)))
    except CodecError:
        return
    assert codec is Codec.PLANES_LZ4


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("change", [-1, 1, 1000])
def test_another_size_than_the_payloads_is_refused(codec: Codec, change: int) -> None:
    stored = encode(codec, memoryview(bytes(5000)))
    with pytest.raises(CodecError):
        decode(codec, stored, memoryview(bytearray(5000 + change)))


@pytest.mark.parametrize("codec", PACKING)
def test_cut_and_lengthened_bytes_are_refused(codec: Codec) -> None:
    stored = bytes(encode(codec, memoryview(random.Random(1).randbytes(5000))))
    for wrong in (stored[:-1], stored[: len(stored) // 2], stored + b"\0"):
        with pytest.raises(CodecError):
            decode(codec, memoryview(wrong), memoryview(bytearray(5000)))


def test_a_frame_that_claims_a_gigabyte_takes_no_memory() -> None:
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(64 << 20))
    lying = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=27, write_content_size=0)
    ).compressobj()
    unsized = lying.compress(bytes(100_000)) + lying.flush()
    tracemalloc.start()
    for stored in (bomb, unsized):
        with pytest.raises(CodecError):
            decode(Codec.ZSTD, memoryview(stored), memoryview(bytearray(5000)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("codec", PACKING)
def test_threads_encode_and_decode_side_by_side(codec: Codec) -> None:
    payloads = [random.Random(i).randbytes(20_000) for i in range(4)]
    wrong: list[int] = []

    def work(i: int) -> None:
        wrong.extend(i for _ in range(20) if there_and_back(codec, payloads[i]) != payloads[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_speeds_are_payload_bytes_by_the_clocks_seconds() -> None:
    times = iter([10.0, 12.0, 12.5])
    payloads = [memoryview(bytes(4000)), memoryview(bytes(2000))]
    speed = measure_codec(Codec.ZSTD, payloads, lambda: next(times))
    assert (speed.encode_bytes_per_second, speed.decode_bytes_per_second) == (3000, 12_000)
    assert speed.ratio > 50
