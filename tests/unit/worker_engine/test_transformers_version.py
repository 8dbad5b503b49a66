"""The worker runs with the versions of transformers that it is tested with, and says so."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from worker.errors import TransformersVersionError
from worker.transformers_version import OLDEST, check_transformers

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("version", ["4.57.1", "5.0.0", "5.16.9", "5.9", "nonsense"])
def test_older_version_is_refused_and_named(version: str) -> None:
    with pytest.raises(TransformersVersionError, match=f"{version}.*5.17"):
        check_transformers(version)


@pytest.mark.parametrize("version", ["5.17.0", "5.17.0.dev0", "5.23.0", "5.100.1", "6.0.0rc1"])
def test_tested_and_newer_versions_are_taken(version: str) -> None:
    check_transformers(version)


def test_installed_version_is_taken() -> None:
    check_transformers()


def test_package_asks_for_what_the_worker_takes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [Requirement(line) for line in project["optional-dependencies"]["worker"]]
    (specifier,) = [str(each.specifier) for each in asked if each.name == "transformers"]
    assert specifier == f">={OLDEST[0]}.{OLDEST[1]}"


def test_worker_beside_an_older_version_does_not_start(tmp_path: Path) -> None:
    told = tmp_path / "transformers-5.9.0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 5.9.0\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT), str(ROOT / "proto")])
    words = [f"model={tmp_path}", "listen=127.0.0.1:0", "security.development=true"]
    done = subprocess.run(
        [sys.executable, "-m", "worker", *(x for word in words for x in ("--set", word))],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        "kvtier-worker: TRANSFORMERS_VERSION: transformers 5.9.0 "
    )
