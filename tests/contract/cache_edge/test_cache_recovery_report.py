"""What a start found on the SSD is told three times: in the log, in the stats, in the metrics."""

import logging
import re
import shutil
import urllib.request
from typing import Any

import pytest


def test_a_start_over_a_lost_index_says_so_everywhere(
    make_service: Any,
    open_peer: Any,
    tools: Any,
    short_directory: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    directory = short_directory()
    service = make_service(directory)
    open_peer(service, "shared_memory").store(tools.fresh_chain(3))
    service.until(lambda stats: stats.tiers[1].block_count == 3)
    service.stop()
    shutil.rmtree(directory / "ssd" / "index")

    with caplog.at_level(logging.INFO):
        again = make_service(directory, metrics_listen="127.0.0.1:0")
    problem = "the index is rebuilt from the segments: it was missing"

    told = next(r for r in caplog.records if r.getMessage() == "ssd opened")
    assert (told.kept_count, told.dropped_count, told.repaired_count) == (3, 0, 0)  # type: ignore[attr-defined]
    assert told.kept_bytes == 3 * tools.block_bytes  # type: ignore[attr-defined]
    assert told.duration_seconds > 0  # type: ignore[attr-defined]
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert any(problem in warning for warning in warnings)

    recovery = again.stats().recovery
    assert (recovery.kept_count, recovery.kept_bytes) == (3, 3 * tools.block_bytes)
    assert recovery.duration_seconds > 0
    assert [problem in each for each in recovery.problems] == [True]

    with urllib.request.urlopen(f"http://{again.server.metrics_listen}/metrics") as response:
        page = response.read().decode()
    assert 'kvtier_cache_recovery_blocks{outcome="kept"} 3.0' in page
    assert float(re.findall(r"kvtier_cache_recovery_kept_bytes (\S+)", page)[-1]) == (
        3 * tools.block_bytes
    )
    assert "kvtier_cache_recovery_problems 1.0" in page
