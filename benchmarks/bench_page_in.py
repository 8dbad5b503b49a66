"""How fast do blocks come from the cache service's arena into a CUDA device's pages?

    python benchmarks/bench_page_in.py [--blocks 512] [--block-bytes 8388608] [--rounds 7]
        [--json FILE]

A real cache service process, the worker's client, pages on the device. In each round, in turns:

    registered   a restore whose slabs are registered with the device
    staged       the same where nothing is registered: through page-locked memory of the client
    plain        the same bytes from page-locked memory, page by page, by torch alone

Rates are medians, `share` is that of the plain copy of the same round. The bar: 0.85 for what is
registered. Needs a CUDA device: status 2 without one. What came is compared; rates change no exit
status.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from kvtier.bench.figures import machine
from kvtier.bench.service import cache_service_process
from kvtier.keys import NamespaceId
from worker.bench.memory import PathMemory
from worker.bench.waiting import until_connected, until_registered
from worker.cache_client import CacheClient
from worker.device_copies import copies_for, copy_lanes, registered_for
from worker.device_pages import DeviceLanding
from worker.host_pages import HostPages
from worker.registered_memory import RegisteredMemory

WAYS = ("registered", "staged", "plain")
SHARE_MIN = 0.85
SECONDS_MAX = 60.0


class Bench:
    def __init__(self, memory: PathMemory, address: str) -> None:
        self._memory = memory
        self._device = torch.device("cuda")
        self._data = torch.empty(
            memory.count, memory.block_bytes, dtype=torch.uint8, device=self._device
        )
        self._right = torch.cat([torch.from_numpy(page) for page in memory.sources])
        self._locked = self._right.pin_memory().view_as(self._data)
        registered = registered_for(self._device)
        assert registered is not None
        self._clients = {
            "registered": self._client(address, registered),
            "staged": self._client(address, None),
        }
        self._memories = {"registered": registered, "staged": None}
        until_registered(self._clients["registered"])
        stored = self._clients["staged"].store("bench", memory.chain(0), HostPages(memory.sources))
        assert stored.stored_count == memory.count, stored

    def round(self, number: int) -> dict[str, float]:
        """Bytes a second by way."""
        rates = {}
        for step in range(len(WAYS)):
            way = WAYS[(number + step) % len(WAYS)]
            self._data.zero_()
            torch.cuda.synchronize()
            began = time.perf_counter()
            if way == "plain":
                for page, host in zip(self._data, self._locked, strict=True):
                    page.copy_(host, non_blocking=True)
                torch.cuda.synchronize()
            else:
                self._restore(way)
            rates[way] = self._memory.size / (time.perf_counter() - began)
            if not torch.equal(self._data.cpu().flatten(), self._right):
                raise SystemExit(f"{way}: a byte differs")
        return rates

    def close(self) -> None:
        for client in self._clients.values():
            client.close()

    def _restore(self, way: str) -> None:
        copies = copies_for(self._data, self._memories[way])
        assert copies is not None
        landing = DeviceLanding(copies, range(self._memory.count))
        chain = self._memory.chain(0)
        result = self._clients[way].restore("bench", chain, landing, SECONDS_MAX)
        if len(result.tiers) != len(chain):
            raise SystemExit(f"{way}: {result.miss_reason.name} ended a restore")

    def _client(self, address: str, registered: RegisteredMemory | None) -> CacheClient:
        client = CacheClient(
            address,
            NamespaceId(bytes(32)),
            self._memory.block_bytes,
            64,
            "bench-page-in",
            "shared_memory",
            store_seconds_max=SECONDS_MAX,
            copy_lanes=copy_lanes(self._device),
            registered=registered,
        )
        until_connected(client)
        return client


def summary(rounds: list[dict[str, float]], way: str) -> dict[str, Any]:
    return {
        "way": way,
        "bytes_per_second": statistics.median(each[way] for each in rounds),
        "share": statistics.median(each[way] / each["plain"] for each in rounds),
        "share_min": SHARE_MIN if way == "registered" else None,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--blocks", type=int, default=512)
    parser.add_argument("--block-bytes", type=int, default=8 << 20, help="64 tokens of 8B, bf16")
    parser.add_argument("--rounds", type=int, default=7, help="the first one does not count")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench_page_in: needs a CUDA device, and torch finds none here", file=sys.stderr)
        return 2
    memory = PathMemory(arguments.block_bytes, arguments.blocks * arguments.block_bytes)
    arena_bytes = memory.size * 5 // 4
    rounds: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-") as name:
        terms = {
            "data_directory": Path(name).absolute() / "cache",
            "host.capacity_bytes": arena_bytes,
            "ssd.enabled": False,
        }
        with cache_service_process(terms) as service:
            bench = Bench(memory, service.address)
            for number in range(arguments.rounds + 1):
                rates = bench.round(number)
                shown = ", ".join(f"{way} {rate / 1e9:.1f}" for way, rate in rates.items())
                print(f"round {number}: {shown} GB/s", file=sys.stderr)
                if number:
                    rounds.append(rates)
            bench.close()
    found = {
        **machine(),
        "device": torch.cuda.get_device_name(),
        "settings": {k: str(v) for k, v in vars(arguments).items()},
        "ways": [summary(rounds, way) for way in WAYS],
    }
    print(json.dumps(found, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(found | {"rounds": rounds}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
