"""Who asks: users that never run into each other, keys of one user, classes of service."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import identity
from gateway.admission import Admission
from gateway.errors import (
    GatewayBusyError,
    InvalidBodyError,
    KeyBusyError,
    KeyMissingError,
    ScopeTooWideError,
    ServiceClassError,
)
from gateway.front import put_caller
from gateway.identity import bearer, caller_of, service_class_of, user_name
from gateway.keys import ApiKey, new_key
from kvtier.scopes import ScopePath
from kvtier.serving import ShuttingDownError
from kvtier.v1 import inference_pb2 as pb

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def key(user: str = "", *classes: str) -> ApiKey:
    return new_key("", ScopePath("acme", "search", user), classes, 1)[0]


@given(one=TEXT, other=TEXT)
def test_two_users_never_have_one_name_and_every_name_can_be_a_scopes(one: str, other: str) -> None:
    try:
        names = user_name(one, "user"), user_name(other, "user")
    except InvalidBodyError:
        return
    assert (names[0] == names[1]) == (one == other)
    assert ScopePath("acme", "search", names[0])


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("", ""),
        ("ann@example.com", "ann@example.com"),
        ("é", "é"),
        ("a b", "a%20b"),
        ("a%20b", "a%2520b"),
        ("a/b*", "a%2Fb%2A"),
        ("a\n", "a%0A"),
    ],
)
def test_a_users_name_is_kept_where_it_can_be(said: str, name: str) -> None:
    assert user_name(said, "user") == name


def test_a_user_too_long_to_tell_apart_is_refused() -> None:
    assert user_name("x" * 128, "user_id")
    for text in ("x" * 129, " " * 43):
        with pytest.raises(InvalidBodyError) as refused:
            user_name(text, "user_id")
        assert refused.value.parameter == "user_id"


def test_of_a_user_too_long_by_far_nothing_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight megabytes of it would hold up every other request for seconds."""
    calls: list[str] = []

    def counted(text: str, safe: str) -> str:
        calls.append(text)
        return "%00"

    monkeypatch.setattr(identity, "quote", counted)
    with pytest.raises(InvalidBodyError):
        user_name("/" * (1 << 20), "user")
    assert len(calls) < 200


def test_a_key_of_one_user_asks_as_nobody_else() -> None:
    assert caller_of(key("ann"), None, "user").user == "ann"
    assert caller_of(key("ann"), "ann", "user").user == "ann"
    assert caller_of(key(), "bob", "user").user == "bob"
    with pytest.raises(InvalidBodyError):
        caller_of(key("ann"), "bob", "user")


def test_who_asks_is_the_keys_whatever_the_request_said() -> None:
    request = pb.GenerateRequest(
        tenant_id="umbra", project_id="x", user_id="y", key_id="z", service_class="gold"
    )
    mine = key()
    put_caller(request, caller_of(mine, None, "user"), "")
    assert request == pb.GenerateRequest(tenant_id="acme", project_id="search", key_id=mine.key_id)
    put_caller(request, caller_of(mine, "ann", "user"), "batch")
    assert (request.user_id, request.service_class) == ("ann", "batch")
    assert request.cache_scope == pb.CACHE_SCOPE_USER


WIDER = (pb.CACHE_SCOPE_ORGANISATION, pb.CACHE_SCOPE_PROJECT)


@pytest.mark.parametrize("scope", [*WIDER, 99])
@pytest.mark.parametrize("said", [None, "ann"])
def test_a_key_of_one_user_cannot_leave_that_users_scope(scope: int, said: str | None) -> None:
    request = pb.GenerateRequest(cache_scope=scope)  # type: ignore[arg-type]
    with pytest.raises(ScopeTooWideError) as refused:
        put_caller(request, caller_of(key("ann"), said, "user"), "")
    assert refused.value.metadata["field"] == "cache_scope"
    for own in (pb.CACHE_SCOPE_UNSPECIFIED, pb.CACHE_SCOPE_USER):
        request = pb.GenerateRequest(cache_scope=own)
        put_caller(request, caller_of(key("ann"), said, "user"), "")
        assert request.cache_scope == pb.CACHE_SCOPE_USER


@pytest.mark.parametrize("scope", WIDER)
def test_an_application_chooses_the_scope_of_the_users_that_it_names(
    scope: "pb.CacheScope.ValueType",
) -> None:
    request = pb.GenerateRequest(cache_scope=scope)
    put_caller(request, caller_of(key(), "ann", "user"), "")
    assert (request.user_id, request.cache_scope) == ("ann", scope)


def test_a_class_is_the_keys_first_or_one_of_its_own() -> None:
    for tier in (None, "auto", "default"):
        assert service_class_of(key(), tier) == ""
        assert service_class_of(key("", "batch", "flex"), tier) == "batch"
    assert service_class_of(key("", "batch", "flex"), "flex") == "flex"
    for each in (key(), key("", "batch")):
        with pytest.raises(ServiceClassError):
            service_class_of(each, "flex")


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic abc", "sk-kvtier-x"])
def test_a_header_without_a_key_is_none(header: str) -> None:
    with pytest.raises(KeyMissingError):
        bearer(header)


def test_a_header_with_a_key_is_read_in_any_case() -> None:
    assert bearer("Bearer x") == bearer("bearer  x ") == "x"


async def test_places_are_bounded_for_all_and_for_one_key_and_come_back() -> None:
    admission = Admission(3, 2)
    with admission.place("a"), admission.place("a"):
        with pytest.raises(KeyBusyError), admission.place("a"):
            pass
        with admission.place("b"), pytest.raises(GatewayBusyError), admission.place("c"):
            pass
        admission.check_integrity()
        assert not await admission.idle(0)
    admission.check_integrity()
    assert admission.count == 0
    assert await admission.idle(0.1)
    with pytest.raises(RuntimeError), admission.place("a"):
        raise RuntimeError
    assert admission.count == 0
    admission.drain()
    with pytest.raises(ShuttingDownError), admission.place("a"):
        pass
