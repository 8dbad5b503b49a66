"""Every error of the billing room has a code of its own choosing, and a reason nobody else has."""

from collections.abc import Iterator

import grpc
import pytest

from billing import errors
from billing.errors import BillingError
from billing.status import STATUS_TABLE


def _all(kind: type[BillingError]) -> Iterator[type[BillingError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _all(below)


KINDS = list(_all(BillingError))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_is_in_the_table_and_exported(kind: type[BillingError]) -> None:
    assert kind in STATUS_TABLE
    assert kind.__name__ in errors.__all__
    assert isinstance(STATUS_TABLE[kind], grpc.StatusCode)
    assert STATUS_TABLE[kind] is not grpc.StatusCode.OK


def test_no_two_errors_share_a_reason() -> None:
    assert len({kind.reason for kind in KINDS}) == len(KINDS)


def test_only_what_may_be_sent_again_is_unavailable() -> None:
    again = {kind.reason for kind, code in STATUS_TABLE.items() if code.name == "UNAVAILABLE"}
    assert again == {"LEDGER_UNAVAILABLE", "LEDGER_LOCKED", "LEDGER_READ_ONLY"}
