"""One cluster for all tests of the folder: built, started, and taken down at the end.

    make test-cluster

KVTIER_CLUSTER=1, which that sets, has these tests looked for: they take minutes and gigabytes. A
missing engine is then a skip that says what is missing; KVTIER_CLUSTER=needed makes it an error.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.engine import Engine, EngineMissingError
from tests.cluster.images import ROOT, make_base_image

DIRECTORY_VARIABLE = "KVTIER_CLUSTER_DIRECTORY"
WANTED_VARIABLE = "KVTIER_CLUSTER"
PROJECT = "kvtier-test"

collect_ignore_glob = [] if os.environ.get(WANTED_VARIABLE) else ["test_*.py"]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    directory = Path(os.environ.get(DIRECTORY_VARIABLE) or ROOT / ".cluster").resolve()
    try:
        engine = Engine(directory)
    except EngineMissingError as error:
        _missing(error)
    with engine:
        try:
            make_base_image(engine, directory)
        except EngineMissingError as error:
            _missing(error)
        there = Cluster(engine, PROJECT)
        there.down()  # what an interrupted run left
        there.build()
        try:
            there.up()
            yield there
        finally:
            there.down()


def _missing(error: EngineMissingError) -> NoReturn:
    if os.environ.get(WANTED_VARIABLE) == "needed":
        raise error
    pytest.skip(f"NO CLUSTER WAS TESTED: {error}")
