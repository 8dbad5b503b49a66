"""How the SSD's files are used, what was ever written to them, and the write budget: told in the
log, in the stats and in the metrics."""

import errno
import logging
import os
import re
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from storage.env import RealEnv

SSD = {"capacity_bytes": "64MiB", "segment_bytes": "16MiB"}


def metrics(service: Any) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{service.server.metrics_listen}/metrics") as response:
        lines = response.read().decode().splitlines()
    return {name: float(n) for name, n in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def test_a_file_system_that_refuses_direct_io_is_told_of_everywhere(
    make_service: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    genuine = RealEnv.open

    def refuse(env: RealEnv, path: Path, flags: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return genuine(env, path, flags)

    monkeypatch.setattr(RealEnv, "open", refuse)
    with caplog.at_level(logging.WARNING):
        service = make_service(metrics_listen="127.0.0.1:0")
    assert any("refuses direct I/O" in record.getMessage() for record in caplog.records)
    files = service.stats().ssd_files
    assert (files.io_mode, files.io_problem) == ("buffered", "Invalid argument")
    assert metrics(service)["kvtier_cache_ssd_direct_io"] == 0


def test_what_was_written_and_the_budget_are_told_across_starts(
    make_service: Any,
    open_peer: Any,
    tools: Any,
    short_directory: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    directory = short_directory()
    # Room for two new blocks; a block and its header are less than twice the block.
    daily = 48 * 4 * tools.block_bytes
    settings = {"metrics_listen": "127.0.0.1:0", "ssd": SSD | {"write_bytes_per_day": daily}}
    service = make_service(directory, **settings)
    open_peer(service, "shared_memory").store(tools.fresh_chain(6))
    service.until(lambda stats: stats.admission.over_budget_count > 0)
    service.until(lambda stats: stats.pending_write_count == 0)
    first = service.stats()
    assert first.admission.allowed_new_bytes < 2 * tools.block_bytes < first.admission.allowed_bytes
    assert not first.ssd_files.written_before
    service.stop()

    again = make_service(directory, **settings)
    files, admission = again.stats().ssd_files, again.stats().admission
    assert files.written_since == first.ssd_files.written_since
    written = first.counters["bytes_written"]
    assert files.written_payload_bytes == written > 0
    assert files.written_device_bytes > written
    assert admission.allowed_new_bytes < 2 * tools.block_bytes
    told = metrics(again)
    assert told["kvtier_cache_write_budget_bytes_per_day"] == daily
    assert told['kvtier_cache_write_allowed_bytes{blocks="new"}'] < 2 * tools.block_bytes
    assert told['kvtier_cache_ssd_life_written_bytes{what="payload"}'] == written
    assert not any("never lets" in record.getMessage() for record in caplog.records)


def test_a_budget_that_never_lets_a_new_block_in_says_so(
    make_service: Any, open_peer: Any, tools: Any, caplog: pytest.LogCaptureFixture
) -> None:
    daily = 48 * tools.block_bytes  # and the block has a header
    with caplog.at_level(logging.WARNING):
        service = make_service(ssd=SSD | {"write_bytes_per_day": daily})
        for _ in range(2):
            open_peer(service, "shared_memory")
    told = [r for r in caplog.records if "never lets a new block" in r.getMessage()]
    assert len(told) == 1
    admission = service.stats().admission
    assert admission.starved_block_bytes == tools.block_bytes
    assert admission.starved_needs_bytes_per_day > daily
    assert re.search(r"ssd\.write_bytes_per_day", told[0].getMessage())
