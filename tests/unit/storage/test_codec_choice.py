"""`auto`: the codec that restores fastest at the measured speeds, and the reason for it."""

import pytest

from storage.codec import Codec
from storage.codec_choice import CodecSpeed, Speeds, break_even, choose_codec

LZ4 = CodecSpeed(Codec.PLANES_LZ4, 1.2e9, 4.0e9, 1.18)
ZSTD = CodecSpeed(Codec.ZSTD, 0.6e9, 2.0e9, 1.43)


def test_the_break_even_is_where_both_ways_take_as_long() -> None:
    for speed in (LZ4, ZSTD):
        disk = break_even(speed)
        encoded = 1 / (disk * speed.ratio) + 1 / speed.decode_bytes_per_second
        assert encoded == pytest.approx(1 / disk)


@pytest.mark.parametrize(
    ("disk", "codec"),
    [
        (3.0e9, Codec.NONE),
        (0.62e9, Codec.NONE),  # a break-even of 610 for LZ4, 601 for zstd
        (0.605e9, Codec.PLANES_LZ4),  # zstd would have to encode faster than it does
        (0.5e9, Codec.ZSTD),
        (0.1e9, Codec.ZSTD),
    ],
)
def test_slower_disks_get_stronger_codecs(disk: float, codec: Codec) -> None:
    assert choose_codec(Speeds(disk, [LZ4, ZSTD])).codec is codec


def test_a_codec_that_cannot_keep_up_with_the_disk_is_not_taken() -> None:
    slow = CodecSpeed(Codec.ZSTD, 0.05e9, 2.0e9, 1.43)
    choice = choose_codec(Speeds(0.1e9, [slow]))
    assert choice.codec is Codec.NONE
    assert "encodes only 50 MB/s" in choice.reason


def test_bytes_that_do_not_shrink_are_never_worth_it() -> None:
    assert break_even(CodecSpeed(Codec.PLANES_LZ4, 1e9, 1e9, 0.99)) == 0.0
    assert choose_codec(Speeds(1.0, [CodecSpeed(Codec.ZSTD, 1e9, 1e9, 0.99)])).codec is Codec.NONE


def test_the_reason_names_what_was_measured() -> None:
    assert choose_codec(Speeds(2.4e9, [LZ4, ZSTD])).reason == (
        "disk 2,400 MB/s: planes_lz4 pays below 610 MB/s (ratio 1.18);"
        " zstd pays below 601 MB/s (ratio 1.43)"
    )
    assert choose_codec(Speeds(0.2e9, [LZ4, ZSTD])).reason == (
        "disk 200 MB/s is below the break-even of zstd, 601 MB/s (ratio 1.43, decodes 2,000 MB/s)"
    )
    assert "nothing was measured" in choose_codec(Speeds(1e9, [])).reason
