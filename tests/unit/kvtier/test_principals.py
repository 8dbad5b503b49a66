"""What a certificate's URIs grant: what is written, and nothing for what is almost written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.principals import Principal, Role, grants, role_uri

NAMES = st.text(min_size=1, max_size=20).filter(lambda name: name.isprintable())


@given(st.lists(NAMES, min_size=1, max_size=3))
def test_a_tenants_scope_comes_back_whatever_its_names(path: list[str]) -> None:
    assert grants([role_uri(Role.TENANT, path)]) == ({Role.TENANT}, {tuple(path)})


HEADS = st.sampled_from([f"kvtier://{role}" for role in Role] + ["kvtier://tenant/a", "KVTIER://"])


@given(
    HEADS | st.just(""),
    st.text(max_size=60) | st.text(st.sampled_from("/a%2fFeE? #\t\n\x00:@.~é"), max_size=6),
)
def test_a_uri_grants_only_what_it_would_be_written_for(head: str, more: str) -> None:
    roles, scopes = grants([head + more])
    written = {role_uri(role, path) for role in roles for path in scopes or [()]}
    assert written in (set(), {head + more})


@pytest.mark.parametrize(
    "uri",
    [
        "KVTIER://engine",
        "Kvtier://engine",
        "kvtier://engine?",
        "kvtier://engine#",
        "kvtier://eng\tine",
        "kvtier://engine\n",
        "\x00kvtier://engine",
        " kvtier://engine",
        "kvtier:// engine",
        "kvtier://tenant/ac\tme",
        "kvtier://tenant/acme#",
        "kvtier://tenant/acme?",
        "kvtier://tenant/%ff",
        "kvtier://tenant/%FE",
        "kvtier://tenant/%2f",
        "kvtier://tenant/%61cme",
        "kvtier://tenant/a b",
        "kvtier://tenant/%",
        "kvtier://tenant/é",
        "kvtier://tenant/\ud800",
    ],
)
def test_what_is_not_written_exactly_so_grants_nothing(uri: str) -> None:
    assert grants([uri, role_uri(Role.BILLER)]) == ({Role.BILLER}, frozenset())


@pytest.mark.parametrize("role", sorted(set(Role) - {Role.TENANT}))
def test_a_role_has_no_path(role: Role) -> None:
    assert grants([role_uri(role)]) == ({role}, frozenset())
    assert grants([f"kvtier://{role}/acme"]) == (frozenset(), frozenset())
    assert grants([f"kvtier://{role}/"]) == (frozenset(), frozenset())


def test_a_tenant_without_a_whole_path_is_nobody() -> None:
    for path in ("", "/", "//", "/acme/", "/acme//p"):
        assert grants([f"kvtier://tenant{path}"]) == (frozenset(), frozenset())


def test_what_is_nobodys_uri_takes_nothing_from_the_others() -> None:
    uris = ["https://operator", "kvtier://[", "kvtier://root", role_uri(Role.BILLER)]
    assert grants(uris)[0] == {Role.BILLER}


def test_no_role_may_nothing() -> None:
    assert not Principal("k", frozenset()).may(frozenset(Role))
