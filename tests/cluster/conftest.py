"""One cluster for all tests of the folder: built, started, and taken down at the end.

    make test-cluster

KVTIER_CLUSTER=1, which that sets, has these tests looked for: they take minutes and gigabytes. A
missing engine is then a skip that says what is missing; KVTIER_CLUSTER=needed makes it an error.
KVTIER_CLUSTER_KEEP=1 leaves the cluster as it is at the end, and takes one that is there: with an
engine that runs all the time, a single file of tests then starts within seconds.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.engine import Engine, EngineMissingError
from tests.cluster.images import ROOT, make_base_image
from tests.cluster.load import Caller
from tests.cluster.stand_ins import make_other_images
from tests.cluster.told import Told

DIRECTORY_VARIABLE = "KVTIER_CLUSTER_DIRECTORY"
WANTED_VARIABLE = "KVTIER_CLUSTER"
KEEP_VARIABLE = "KVTIER_CLUSTER_KEEP"
PROJECT = "kvtier-test"

collect_ignore_glob = [] if os.environ.get(WANTED_VARIABLE) else ["test_*.py"]


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    try:
        there = Engine(_directory())
    except EngineMissingError as error:
        _missing(error)
    with there:
        yield there


@pytest.fixture(scope="session")
def cluster(engine: Engine) -> Iterator[Cluster]:
    try:
        make_base_image(engine, _directory())
        left_out = make_other_images(engine, _directory())
    except EngineMissingError as error:
        _missing(error)
    keep = bool(os.environ.get(KEEP_VARIABLE))
    there = Cluster(engine, PROJECT, left_out)
    if not keep:
        there.down()  # what an interrupted run left
    there.build()
    try:
        there.up()
        yield there
    finally:
        if not keep:
            there.down()


@pytest.fixture(scope="session")
def told(cluster: Cluster) -> Told:
    return Told(cluster)


@pytest.fixture(scope="session")
def caller(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Caller:
    return Caller(cluster, tmp_path_factory.mktemp("caller"))


def _directory() -> Path:
    return Path(os.environ.get(DIRECTORY_VARIABLE) or ROOT / ".cluster").resolve()


def _missing(error: EngineMissingError) -> NoReturn:
    if os.environ.get(WANTED_VARIABLE) == "needed":
        raise error
    pytest.skip(f"NO CLUSTER WAS TESTED: {error}")
