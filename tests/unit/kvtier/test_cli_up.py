"""`kvtier up` before it starts anything, and what a failed start says."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kvtier.cli.claim import ClaimError, check_addresses, claim_directory
from kvtier.cli.main import build
from kvtier.cli.processes import LocalCluster, ServiceStartError, run_room_tool, start_service


@pytest.fixture
def taken() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def test_a_directory_has_one_kvtier_up_at_a_time(tmp_path):
    place = tmp_path / "new" / "place"
    with claim_directory(place):
        with pytest.raises(ClaimError, match=rf"process {os.getpid()}.*--directory"):
            claim_directory(place).__enter__()
        with claim_directory(tmp_path / "other"):
            pass
    with claim_directory(place):
        pass


def test_a_directory_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ClaimError, match="choose another with --directory"):
        claim_directory(tmp_path / "file").__enter__()


def test_an_address_in_use_names_the_option_that_changes_it(taken):
    with pytest.raises(ClaimError, match=f"{taken}.*--listen HOST:PORT"):
        check_addresses(
            {"--set cache.listen=HOST:PORT": "127.0.0.1:0", "--listen HOST:PORT": taken}
        )


@pytest.mark.parametrize("address", ["nowhere", ":1", "127.0.0.1:", "127.0.0.1:99999", "a:b"])
def test_what_is_no_address_says_how_to_write_one(address):
    with pytest.raises(ClaimError, match="write --listen HOST:PORT"):
        check_addresses({"--listen HOST:PORT": address})


def test_one_address_for_two_services_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        free = f"127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(ClaimError, match="given twice"):
        check_addresses({"--a": free, "--b": free})


def test_free_addresses_pass():
    check_addresses({"--a": "127.0.0.1:0", "--b": "127.0.0.1:0", "--c": "localhost:0"})


def up(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(build(), ["up", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_a_second_up_is_refused_at_once_and_starts_nothing(tmp_path):
    with claim_directory(tmp_path):
        code, out, err = up("--directory", str(tmp_path), "--json")
    assert (code, out) == (2, "")
    assert "another kvtier up" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["up.lock"]


def test_a_taken_port_is_told_before_anything_is_made(tmp_path, taken):
    code, out, err = up("--directory", str(tmp_path), "--set", f"cache.listen={taken}")
    assert (code, out) == (2, "")
    assert "--set cache.listen=HOST:PORT" in err
    assert not (tmp_path / "demo-model").exists()


@pytest.mark.parametrize("setting", ["listen=1", "till.listen=1", "cache", "cache.listen"])
def test_a_setting_names_its_service(setting):
    code, _, err = up("--set", setting)
    assert code == 2
    assert "SERVICE.KEY=VALUE" in err


def test_a_failed_start_says_all_that_is_wrong_and_where_the_log_is(tmp_path: Path):
    log = tmp_path / "logs" / "billing.log"
    settings = {"listen": "nowhere", "typo": 1}
    with pytest.raises(ServiceStartError) as failed:
        start_service("billing", settings, log)
    for word in ("listen", "typo", "no such setting", str(log)):
        assert word in str(failed.value)
    # The words of an earlier start are not this one's.
    with pytest.raises(ServiceStartError) as failed:
        start_service("billing", {"drain_seconds": "-1"}, log)
    assert "drain_seconds" in str(failed.value)
    assert "typo" not in str(failed.value)


def test_a_tool_tells_its_steps_and_its_failure():
    said: list[str] = []
    run_room_tool("this", say=said.append)
    assert said[0] == "The Zen of Python, by Tim Peters"
    with pytest.raises(ServiceStartError, match="no_such_module"):
        run_room_tool("no_such_module")


def test_a_service_that_others_could_reach_in_clear_is_not_started(tmp_path: Path) -> None:
    with pytest.raises(ServiceStartError, match="TLS_REQUIRED") as caught:
        LocalCluster(tmp_path, tmp_path).start_billing("0.0.0.0:0")
    assert "security.certificate_file" in str(caught.value)
