"""Grants, and that a request can only narrow them."""

import pytest

from kvtier.errors import KvtierError
from kvtier.scopes import ScopeLevel
from worker.errors import (
    InvalidScopeError,
    PriorityNotGrantedError,
    ScopeTooWideError,
    TenantUnknownError,
)
from worker.tenants import Caller, Grant, Tenants

ORGANISATION, PROJECT, USER = ScopeLevel.ORGANISATION, ScopeLevel.PROJECT, ScopeLevel.USER


def tenants(*grants: str) -> Tenants:
    return Tenants([Grant.parse(grant) for grant in grants], bytes(32))


@pytest.mark.parametrize(
    ("caller", "scope"),
    [
        (Caller("acme"), "acme"),
        # Saying who asks does not narrow; saying the scope does.
        (Caller("acme", "search", "ann"), "acme"),
        (Caller("acme", "search", "ann", ORGANISATION), "acme"),
        (Caller("acme", "search", "ann", PROJECT), "acme/search"),
        (Caller("acme", "search", "ann", USER), "acme/search/ann"),
        # A project with a grant of its own is out of its organisation's scope.
        (Caller("acme", "sealed"), "acme/sealed"),
        (Caller("acme", "sealed", "ann", USER), "acme/sealed/ann"),
        (Caller("umbra", "lab"), "umbra/lab"),
        (Caller("solo", "p", "ann"), "solo/p/ann"),
    ],
)
def test_the_scope_is_the_longest_grant_narrowed_as_asked(caller: Caller, scope: str) -> None:
    granted = tenants("acme", "acme/sealed", "umbra/lab", "solo/p/ann")
    assert str(granted.scope(caller)) == scope


@pytest.mark.parametrize(
    ("caller", "error"),
    [
        (Caller(""), TenantUnknownError),
        (Caller("", "search"), TenantUnknownError),
        (Caller("nobody"), TenantUnknownError),
        (Caller("acme/search"), TenantUnknownError),
        (Caller("ac me"), TenantUnknownError),
        (Caller("Acme"), TenantUnknownError),
        (Caller("umbra"), TenantUnknownError),
        (Caller("umbra", "search"), TenantUnknownError),
        (Caller("acme", "", "ann"), InvalidScopeError),
        (Caller("acme", "a/b"), InvalidScopeError),
        (Caller("acme", "search", "a b"), InvalidScopeError),
        (Caller("acme", "x" * 129), InvalidScopeError),
        (Caller("acme", cache_scope=PROJECT), InvalidScopeError),
        (Caller("acme", cache_scope=USER), InvalidScopeError),
        (Caller("acme", "search", cache_scope=USER), InvalidScopeError),
        (Caller("acme", cache_scope=ScopeLevel.PUBLIC), ScopeTooWideError),
        (Caller("umbra", "lab", cache_scope=ORGANISATION), ScopeTooWideError),
        (Caller("acme", "sealed", "ann", ORGANISATION), ScopeTooWideError),
    ],
)
def test_what_is_not_granted_is_refused_by_its_reason(
    caller: Caller, error: type[KvtierError]
) -> None:
    with pytest.raises(error):
        tenants("acme", "acme/sealed", "umbra/lab").scope(caller)


def test_an_unknown_tenant_an_unknown_project_and_a_name_that_cannot_be_get_one_answer() -> None:
    granted = tenants("acme/search")
    said = set()
    for caller in (Caller("nobody"), Caller("acme"), Caller("acme", "other"), Caller("a b")):
        with pytest.raises(TenantUnknownError) as refusal:
            granted.scope(caller)
        said.add(str(refusal.value))
    assert len(said) == 1


def test_the_refusal_says_which_name_is_missing() -> None:
    with pytest.raises(InvalidScopeError, match="project_id is empty"):
        tenants("acme").scope(Caller("acme", cache_scope=USER))
    with pytest.raises(InvalidScopeError, match="user_id is empty"):
        tenants("acme").scope(Caller("acme", "search", cache_scope=USER))
    with pytest.raises(InvalidScopeError, match="name the project"):
        tenants("acme").scope(Caller("acme", "", "ann"))


@pytest.mark.parametrize(
    ("project", "asked", "priority"),
    [
        ("", None, 0),
        ("", 0, 0),
        ("", -2, -2),
        ("", 1, None),
        ("", 2, None),
        ("urgent", 2, 2),
        ("urgent", None, 0),
        ("batch", None, -1),
        ("batch", -1, -1),
        ("batch", 0, None),
        ("alarm", None, 1),
        ("alarm", 0, None),
    ],
)
def test_a_request_has_a_priority_of_its_grant_and_the_nearest_to_0_by_itself(
    project: str, asked: int | None, priority: int | None
) -> None:
    granted = tenants(
        "acme",
        "acme/urgent priority=-2..2",
        "acme/batch priority=-2..-1",
        "acme/alarm priority=1..2",
    )
    caller = Caller("acme", project)
    if priority is None:
        with pytest.raises(PriorityNotGrantedError):
            granted.priority(caller, asked)
    else:
        assert granted.priority(caller, asked) == priority


@pytest.mark.parametrize(
    "text", ["acme", "acme/search/ann", "acme priority=-1..2", "a priority=2..2"]
)
def test_a_grant_reads_as_it_is_written(text: str) -> None:
    assert str(Grant.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "a priority",
        "a priority=1",
        "a priority=2..1",
        "a priority=-3..0",
        "a priority=0..3",
        "a priority=0..1 priority=0..1",
        "a color=red",
        "a priority=0...1",
    ],
)
def test_a_grant_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a "):
        Grant.parse(text)
