"""What a certificate's URIs grant: what is written, and nothing for what is almost written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.principals import Principal, Role, grants, role_uri

NAMES = st.text(min_size=1, max_size=20).filter(lambda name: name.isprintable())


@given(st.lists(NAMES, min_size=1, max_size=3))
def test_a_tenants_scope_comes_back_whatever_its_names(path: list[str]) -> None:
    assert grants([role_uri(Role.TENANT, path)]) == ({Role.TENANT}, {tuple(path)})


@given(st.text(max_size=60))
def test_no_text_is_more_than_it_says(text: str) -> None:
    roles, scopes = grants([text])
    assert len(roles) <= 1
    assert not roles or text.startswith(("kvtier://", "KVTIER://")) or "kvtier" in text.lower()
    assert not scopes or roles == {Role.TENANT}


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
