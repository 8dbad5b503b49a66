"""Random kill -9 of the worker's usage side, of billing and of its database: the ledger is what
clients were told, to the token.

The same script runs with a million events: `python -m tests.soak.usage_kills --events 1000000`.
"""

from pathlib import Path

import pytest

from tests.postgres import NoPostgresError
from tests.soak.usage_kills import soak

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("backend", ["sqlite", "postgres"])
def test_the_ledger_is_what_clients_were_told_whatever_is_killed(
    tmp_path: Path, backend: str
) -> None:
    try:
        outcome = soak(6_000, backend, tmp_path, seed=7, kills_apart=0.4)
    except NoPostgresError as error:
        pytest.skip(f"NOT TESTED ON POSTGRESQL: {error}")
    assert outcome.holds, outcome
    assert outcome.told >= 6_000
    assert outcome.resent
    assert set(outcome.killed) >= {"worker", "billing"}
    assert ("database" in outcome.killed) == (backend == "postgres")
