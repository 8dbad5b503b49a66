"""For all tests: how long something takes decides nothing, on machines that others use too."""

import os
from collections.abc import Iterator

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch: as many threads as cores in each of several processes only wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

from tests.postgres import PostgresServer, needed_postgres

settings.register_profile("kvtier", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kvtier")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One for the session. It syncs nothing and tidies up no database behind a test: tests of
    crashes have one of their own."""
    server = needed_postgres("fsync=off", "full_page_writes=off", "autovacuum=off")
    yield server
    server.stop()
