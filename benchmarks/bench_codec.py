"""What does each codec give and take on KV blocks, and what would `auto` choose on a disk?

Blocks are bf16 numbers as attention keys are: normal, each channel with a scale of its own; or the
bytes of FILE. Rounds take turns, so that a busy moment hits every codec; the median counts.

    python benchmarks/bench_codec.py [--block-bytes 2097152] [--blocks 8] [--rounds 5]
                                     [--file FILE] [--disk-mb 100 500 2000] [--json]
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import lz4.block
import numpy as np
import zstandard

from storage.codec import Codec
from storage.codec_choice import CodecSpeed, Speeds, break_even, choose_codec
from storage.codec_speed import measure_codec


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--block-bytes", type=int, default=2 << 20)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--file", type=Path, help="real bytes instead of made ones")
    parser.add_argument("--disk-mb", type=float, nargs="+", default=[100.0, 500.0, 2000.0])
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    arguments = parser.parse_args()
    blocks = payloads(arguments)
    codecs = [codec for codec in Codec if codec is not Codec.NONE]
    rounds = [
        [measure_codec(c, blocks, time.perf_counter) for c in codecs]
        for _ in range(arguments.rounds)
    ]
    speeds = [median([each[i] for each in rounds]) for i in range(len(codecs))]
    report = describe(arguments, speeds, without_planes(blocks))
    if arguments.json:
        print(json.dumps(report))
        return 0
    for row in report["results"]:
        print(
            f"{row['codec']:<11} ratio {row['ratio']:.3f}, encodes {row['encode_GBps']:.2f} GB/s,"
            f" decodes {row['decode_GBps']:.2f} GB/s, pays below {row['break_even_GBps']:.2f} GB/s"
        )
    for name, ratio in report["ratio_without_planes"].items():
        print(f"{name:<11} ratio {ratio:.3f} on the elements as they stand")
    for row in report["choices"]:
        print(f"{row['codec']:<11} {row['reason']}")
    return 0


def payloads(arguments: argparse.Namespace) -> list[memoryview]:
    size, count = arguments.block_bytes, arguments.blocks
    if arguments.file is not None:
        raw = arguments.file.read_bytes()[: size * count]
        found = [memoryview(raw[i : i + size]) for i in range(0, len(raw) - size + 1, size)]
        if not found:
            sys.exit(f"{arguments.file} has less than one block of {size} bytes")
        return found
    rng = np.random.default_rng(0)
    scale = np.exp(rng.standard_normal(128)).astype(np.float32)
    made = []
    for _ in range(count):
        values = rng.standard_normal((size // 256, 128), np.float32) * scale
        made.append(memoryview((values.view(np.uint32) >> 16).astype("<u2").tobytes()))
    return made


def median(speeds: list[CodecSpeed]) -> CodecSpeed:
    return CodecSpeed(
        speeds[0].codec,
        statistics.median(s.encode_bytes_per_second for s in speeds),
        statistics.median(s.decode_bytes_per_second for s in speeds),
        speeds[0].ratio,
    )


def without_planes(blocks: list[memoryview]) -> dict[str, float]:
    """The compressors alone: why the planes are there."""
    compressor = zstandard.ZstdCompressor(level=1)
    size = sum(block.nbytes for block in blocks)
    return {
        "lz4": size / sum(len(lz4.block.compress(b, store_size=False)) for b in blocks),
        "zstd": size / sum(len(compressor.compress(b)) for b in blocks),
    }


def describe(
    arguments: argparse.Namespace, speeds: list[CodecSpeed], plain: dict[str, float]
) -> dict[str, Any]:
    choices = [choose_codec(Speeds(disk * 1e6, speeds)) for disk in arguments.disk_mb]
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "block_bytes": arguments.block_bytes,
        "blocks": arguments.blocks,
        "rounds": arguments.rounds,
        "results": [
            {
                "codec": s.codec.label,
                "ratio": s.ratio,
                "encode_GBps": s.encode_bytes_per_second / 1e9,
                "decode_GBps": s.decode_bytes_per_second / 1e9,
                "break_even_GBps": break_even(s) / 1e9,
            }
            for s in speeds
        ],
        "ratio_without_planes": plain,
        "choices": [
            {"disk_MBps": disk, "codec": choice.codec.label, "reason": choice.reason}
            for disk, choice in zip(arguments.disk_mb, choices, strict=True)
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
