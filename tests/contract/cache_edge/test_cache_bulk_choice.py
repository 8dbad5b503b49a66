"""When a session has a bulk lane, and what a client does without one."""

from typing import Any

import pytest

from kvtier.tls import TlsRequiredError


def test_a_service_without_a_lane_offers_none(make_service: Any, tools: Any) -> None:
    without = make_service(bulk={"listen": ""}, ssd={"enabled": False})
    request = tools.open_request("bulk")
    error = tools.refusal(lambda: without.stub.OpenSession(request, timeout=5))
    assert error.reason == "INVALID_TRANSPORT"


def test_a_client_that_must_have_the_lane_does_not_go_around_it(
    make_service: Any, make_client: Any, tools: Any
) -> None:
    without = make_service(bulk={"listen": ""}, ssd={"enabled": False})
    chain, pages = tools.fresh_chain(1), tools.empty_pages(1)
    client = make_client(without.address, "bulk")
    assert client.store("r", chain, pages).stored_count == 0
    assert client.counts()["cache_failures"] > 0
    assert not client.connected()


def test_a_client_that_takes_what_it_gets_says_what_it_passed_over(
    make_service: Any, make_client: Any, tools: Any, caplog: Any
) -> None:
    without = make_service(bulk={"listen": ""}, ssd={"enabled": False})
    without.settings.arena_socket_path.rename(without.settings.arena_socket_path.with_suffix(".x"))
    chain = tools.fresh_chain(1)
    client = make_client(without.address, "auto")
    assert client.store("r", chain, tools.filled_pages(chain)).stored_count == 1
    counts = client.counts()
    assert counts["sessions_not_over_shared_memory"] == counts["sessions_not_over_bulk"] == 1
    assert any(getattr(r, "problem", "") == "INVALID_TRANSPORT" for r in caplog.records)


def test_without_shared_memory_a_client_takes_the_lane(
    make_service: Any, make_client: Any, tools: Any
) -> None:
    other_host = make_service(ssd={"enabled": False})
    other_host.settings.arena_socket_path.rename(
        other_host.settings.arena_socket_path.with_suffix(".x")
    )
    chain, pages = tools.fresh_chain(3), tools.empty_pages(3)
    client = make_client(other_host.address, "auto")
    assert client.store("r", chain, tools.filled_pages(chain)).stored_count == 3
    assert len(client.restore("r", chain, pages, 10.0).tiers) == 3
    assert other_host.bulk_side().lane_count == 2  # of blocks, and of calls
    assert not [name for name in client.counts() if name.startswith("sessions_not_over")][1:]
    assert client.counts()["sessions_not_over_shared_memory"] == 1


def test_where_there_is_no_second_connection_calls_go_over_grpc(
    make_service: Any, make_client: Any, tools: Any
) -> None:
    small = make_service(bulk={"listen": "127.0.0.1:0", "connections_max": 1})
    chain, pages = tools.fresh_chain(3), tools.empty_pages(3)
    client = make_client(small.address, "bulk")
    assert client.store("r", chain, tools.filled_pages(chain)).stored_count == 3
    assert len(client.restore("r", chain, pages, 10.0).tiers) == 3
    assert client.counts()["sessions_not_over_line"] == 1
    assert small.bulk_side().lane_count == 1


def test_the_lane_is_in_clear_only_where_the_control_lane_may_be(make_service: Any) -> None:
    with pytest.raises(TlsRequiredError, match=r"0\.0\.0\.0"):
        make_service(bulk={"listen": "0.0.0.0:0"}, ssd={"enabled": False})


def test_a_worker_is_told_its_transport() -> None:
    from worker.settings import CacheSettings as WorkerCacheSettings

    assert WorkerCacheSettings().transport == "auto"
    assert WorkerCacheSettings(transport="bulk").transport == "bulk"
    with pytest.raises(ValueError, match="transport"):
        WorkerCacheSettings.model_validate({"transport": "pigeon"})
