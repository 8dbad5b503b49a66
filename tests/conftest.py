"""For all tests: how long something takes decides nothing, on machines that others use too."""

from collections.abc import Iterator

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
