"""Every error of the worker room has a code and a reason of its own."""

import grpc
import pytest

from kvtier.errors import KvtierError
from worker import errors
from worker.status import STATUS_TABLE


def all_subclasses(kind: type[KvtierError]) -> list[type[KvtierError]]:
    return [kind] + [below for child in kind.__subclasses__() for below in all_subclasses(child)]


@pytest.mark.parametrize("kind", all_subclasses(errors.WorkerError))
def test_every_worker_error_is_in_the_table(kind):
    assert kind in STATUS_TABLE
    assert STATUS_TABLE[kind] is not grpc.StatusCode.OK
    assert kind.__name__ in (errors.__doc__ or "")


def test_reasons_are_unique():
    reasons = [kind.reason for kind in all_subclasses(errors.WorkerError)]
    assert len(set(reasons)) == len(reasons)
