"""What the service serves is what its contract names, whole."""

from typing import Any, cast

import pytest
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pool import Default

from cache_service.edge.services import Service, services
from cache_service.intake import StreamIntake
from cache_service.servicer import CacheServicer

SERVED = services(cast(Any, None), CacheServicer(cast(Any, None), StreamIntake(), "/nowhere"))


def described(service: Service[Any]) -> ServiceDescriptor:
    return Default().FindServiceByName(service.name)


def test_no_service_is_served_twice() -> None:
    names = [service.name for service in SERVED]
    assert len(set(names)) == len(names) > 0


@pytest.mark.parametrize("service", SERVED, ids=lambda service: service.name)
def test_every_call_of_a_service_is_written_in_exactly_one_place(service: Service[Any]) -> None:
    """A call that no class writes would answer UNIMPLEMENTED; of two, one would be dead."""
    kinds = type(service.servicer).__mro__
    for method in described(service).methods:
        places = [kind for kind in kinds if method.name in vars(kind)]
        ours = [kind for kind in places if not kind.__module__.startswith("kvtier.v1.")]
        assert len(ours) == 1, f"{method.full_name} is written in {ours}"
        assert places[0] is ours[0], f"{method.full_name} is hidden by {places[0]}"
