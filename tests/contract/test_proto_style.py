"""The contract's manners, read from its descriptors and its comments."""

import re
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.descriptor import FileDescriptor

from kvtier.blocks import MissReason, Tier
from kvtier.v1 import (
    block_pb2,
    budget_pb2,
    budget_pb2_grpc,
    bulk_pb2,
    bulk_pb2_grpc,
    cache_pb2,
    cache_pb2_grpc,
    control_pb2,
    control_pb2_grpc,
    describe_pb2,
    describe_pb2_grpc,
    events_pb2,
    events_pb2_grpc,
    explain_pb2,
    explain_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    receipt_opening_pb2,
    receipt_opening_pb2_grpc,
    receipt_pb2,
    receipt_pb2_grpc,
    usage_pb2,
    usage_pb2_grpc,
)

FILES: list[FileDescriptor] = [
    module.DESCRIPTOR
    for module in (
        block_pb2,
        budget_pb2,
        bulk_pb2,
        cache_pb2,
        control_pb2,
        events_pb2,
        explain_pb2,
        inference_pb2,
        describe_pb2,
        receipt_pb2,
        receipt_opening_pb2,
        usage_pb2,
    )
]
METHODS = [
    method
    for file in FILES
    for service in file.services_by_name.values()
    for method in service.methods
]
STUBS = (
    budget_pb2_grpc,
    bulk_pb2_grpc,
    cache_pb2_grpc,
    control_pb2_grpc,
    events_pb2_grpc,
    explain_pb2_grpc,
    inference_pb2_grpc,
    describe_pb2_grpc,
    receipt_pb2_grpc,
    receipt_opening_pb2_grpc,
    usage_pb2_grpc,
)


def messages() -> list[Any]:
    found: list[Any] = []
    waiting = [message for file in FILES for message in file.message_types_by_name.values()]
    while waiting:
        message = waiting.pop()
        found.append(message)
        waiting.extend(message.nested_types)
    return found


def enums() -> list[Any]:
    top = [enum for file in FILES for enum in file.enum_types_by_name.values()]
    return top + [enum for message in messages() for enum in message.enum_types]


def numbers(enum: Any, prefix: str) -> dict[str, int]:
    return {
        value.name.removeprefix(prefix): value.number for value in enum.values if value.number != 0
    }


def test_tiers_and_miss_reasons_are_the_same_numbers_on_both_sides() -> None:
    assert numbers(block_pb2.Tier.DESCRIPTOR, "TIER_") == {t.name: t.value for t in Tier}
    assert numbers(block_pb2.MissReason.DESCRIPTOR, "MISS_REASON_") == {
        r.name: r.value for r in MissReason if r is not MissReason.NONE
    }
    assert MissReason.NONE == block_pb2.MISS_REASON_UNSPECIFIED


def test_transports_are_the_same_numbers_on_both_sides() -> None:
    from cache_service.views import Transport

    assert numbers(cache_pb2.Transport.DESCRIPTOR, "TRANSPORT_") == {
        t.name: t.value for t in Transport
    }


def test_kinds_of_event_are_the_same_numbers_on_both_sides() -> None:
    from cache_service.events.changes import EventKind

    assert numbers(events_pb2.EventKind.DESCRIPTOR, "EVENT_KIND_") == {
        kind.name: kind.value for kind in EventKind
    }


def test_words_about_purges_are_the_same_numbers_on_both_sides() -> None:
    from cache_service.purge_views import PurgeKind, SharedForgetting, SsdForgetting

    assert numbers(control_pb2.PurgeKind.DESCRIPTOR, "PURGE_KIND_") == {
        kind.name: kind.value for kind in PurgeKind
    }
    assert numbers(control_pb2.SsdForgetting.DESCRIPTOR, "SSD_FORGETTING_") == {
        each.name: each.value for each in SsdForgetting
    }
    assert numbers(control_pb2.SharedForgetting.DESCRIPTOR, "SHARED_FORGETTING_") == {
        each.name: each.value for each in SharedForgetting
    }


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.full_name)
def test_every_rpc_has_a_request_and_a_response_of_its_own(method: Any) -> None:
    assert method.input_type.name == f"{method.name}Request"
    assert method.output_type.name == f"{method.name}Response"
    used = [m.input_type.full_name for m in METHODS]
    assert used.count(method.input_type.full_name) == 1


@pytest.mark.parametrize("enum", enums(), ids=lambda e: e.full_name)
def test_every_enum_starts_unspecified(enum: Any) -> None:
    zero = enum.values_by_number[0].name
    prefix = "".join(f"_{c}" if c.isupper() else c.upper() for c in enum.name).lstrip("_")
    assert zero == f"{prefix}_UNSPECIFIED"
    assert all(value.name.startswith(f"{prefix}_") for value in enum.values)


@pytest.mark.parametrize("message", messages(), ids=lambda m: m.full_name)
def test_there_are_no_unsigned_integers_but_checksums(message: Any) -> None:
    for field in message.fields:
        assert field.type not in (Field.TYPE_UINT32, Field.TYPE_UINT64, Field.TYPE_FIXED32)
        if field.type == Field.TYPE_FIXED64:
            assert field.name == "checksums"


def test_everything_is_in_the_package_of_its_directory() -> None:
    for file in FILES:
        assert file.package == "kvtier.v1"
        assert file.name.startswith("kvtier/v1/")


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.full_name)
def test_every_rpc_says_what_it_promises(method: Any) -> None:
    """The generator copies a method's comment into the servicer it writes."""
    service = f"{method.containing_service.name}Servicer"
    servicer = next(getattr(stub, service) for stub in STUBS if hasattr(stub, service))
    comment = getattr(servicer, method.name).__doc__ or ""
    assert len(comment.strip()) > 40
    assert "Missing associated documentation" not in comment
    assert re.search(r"Preconditions?:", comment)
    assert re.search(r"Idempoten|Changes nothing|Reads only|reads only", comment)
    assert "Errors" in comment
