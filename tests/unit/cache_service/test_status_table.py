"""Every error of the cache has a code of its own in the one table."""

from collections.abc import Iterator

import pytest

from cache_service.errors import CacheError
from cache_service.status import STATUS_TABLE
from kvtier.errors import KvtierError


def descendants(kind: type[KvtierError]) -> Iterator[type[KvtierError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from descendants(child)


@pytest.mark.parametrize("kind", sorted(descendants(CacheError), key=lambda k: k.__name__))
def test_every_cache_error_is_in_the_table(kind: type[KvtierError]) -> None:
    assert kind in STATUS_TABLE


def test_no_two_cache_errors_share_a_reason() -> None:
    reasons = [kind.reason for kind in descendants(CacheError)]
    assert len(set(reasons)) == len(reasons)
