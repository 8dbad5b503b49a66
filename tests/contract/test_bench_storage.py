"""`kvtier bench storage` says what it promises, under the names that it promises."""

import json
from pathlib import Path

import pytest
from rich.console import Console
from typer import Typer
from typer.testing import CliRunner

from cache_service.bench import storage as command
from cache_service.bench.tables import show
from kvtier.bench.figures import percentile
from storage.bench.settings import BenchSettings
from storage.errors import CapacityError

RESULT_KEYS = {
    "block_bytes",
    "store_GBps",
    "cold_restore_GBps",
    "warm_restore_GBps",
    "fio_write_GBps",
    "fio_read_GBps",
    "store_ratio_to_fio",
    "cold_restore_ratio_to_fio",
    "store_cpu_seconds_per_GB",
    "cold_restore_cpu_seconds_per_GB",
    "write_amplification",
}
SMALL = 1 << 20


def settings(directory: Path, **other: object) -> BenchSettings:
    sizes: dict[str, object] = {
        "block_bytes": (64 << 10,),
        "rounds": 2,
        "round_bytes": 4 * SMALL,
        "segment_bytes": SMALL,
        "capacity_bytes": 8 * SMALL,
        "threads": 2,
        "single_blocks": 5,
        "rocksdb_bytes": SMALL,
        "recovery_blocks": (2_000,),
    }
    return BenchSettings(directory, **(sizes | other))  # type: ignore[arg-type]


@pytest.mark.parametrize("fio", [True, False])
def test_a_small_run_has_every_key_and_leaves_nothing(tmp_path, monkeypatch, fio: bool) -> None:
    if not fio:
        monkeypatch.setattr("storage.bench.fio.shutil.which", lambda name: None)
    result = json.loads(json.dumps(command.run(settings(tmp_path))))
    (row,) = result["results"]
    assert set(row) >= RESULT_KEYS
    assert row["block_bytes"] == 64 << 10
    assert 1.0 < row["write_amplification"] < 3.0
    assert row["store_block_seconds_p50"] <= row["store_block_seconds_p99"]
    (restart,) = result["recovery"]
    assert restart["blocks"] == 2_000
    for kind in ("", "warm_"):
        assert 0 < restart[f"{kind}seconds"] <= restart[f"{kind}seconds_max"]
        assert restart[f"{kind}cpu_seconds"] > 0
    assert "index_bytes_per_block" in restart
    if not fio:
        assert "apt-get install fio" in result["fio"]
        assert row["store_ratio_to_fio"] is None
    assert list(tmp_path.iterdir()) == []


def test_encrypted_rows_stand_beside_the_others(tmp_path) -> None:
    result = command.run(settings(tmp_path, encrypted=True, recovery_blocks=()))
    assert [row["encrypted"] for row in result["results"]] == [False, True]
    assert all(set(row) >= RESULT_KEYS for row in result["results"])
    show(Console(), result)


def test_sizes_that_measure_nothing_are_refused(tmp_path) -> None:
    with pytest.raises(CapacityError, match="at least 6 segments"):
        settings(tmp_path, capacity_bytes=4 * SMALL)
    with pytest.raises(CapacityError, match="half of the ring"):
        settings(tmp_path, round_bytes=5 * SMALL)
    with pytest.raises(CapacityError, match="at least 4 blocks"):
        settings(tmp_path, block_bytes=(SMALL,))


def test_percentiles_are_values_that_occurred() -> None:
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert percentile([3.0, 1.0, 2.0], 99) == 3.0
    assert percentile([5.0], 50) == 5.0


def test_quick_changes_only_what_was_not_given(tmp_path) -> None:
    app = Typer()
    app.command()(command.storage)
    given = ["--blocks", "256KiB", "--size", "8MiB", "--rounds", "1", "--recovery", ""]
    outcome = CliRunner().invoke(app, [*given, "--directory", str(tmp_path), "--quick", "--json"])
    assert outcome.exit_code == 0, outcome.output
    used = json.loads(outcome.stdout)["settings"]
    assert used["block_bytes"] == [256 << 10]
    assert used["round_bytes"] == 8 * SMALL
    assert (used["rounds"], used["recovery_blocks"]) == (1, [])
    assert (used["single_blocks"], used["capacity_bytes"]) == (30, 512 * SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("given", [{"round_bytes": 1024 * SMALL}, {"block_bytes": (64 * SMALL,)}])
def test_what_is_given_beside_quick_has_the_room_it_has_without(tmp_path, given) -> None:
    assert BenchSettings(tmp_path, **given)
    assert BenchSettings(tmp_path, **command.quick_options(given))
