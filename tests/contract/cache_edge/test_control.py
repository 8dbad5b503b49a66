"""ControlService and the commands that call it, against real services."""

import hashlib
import json
import threading
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from typer.testing import CliRunner

from cache_service.audit.walk import walk
from cache_service.commands import app
from kvtier.errors import read_error
from kvtier.keys import BlockHash
from kvtier.v1 import block_pb2, cache_pb2, control_pb2_grpc
from kvtier.v1 import control_pb2 as pb

NAMESPACE = bytes(range(32))
OTHER = bytes(range(1, 33))


@pytest.fixture(scope="module")
def steered(make_service: Any) -> Any:
    return make_service()


@pytest.fixture(scope="module")
def stub(steered: Any) -> Any:
    return control_pb2_grpc.ControlServiceStub(steered.channel)


@pytest.fixture
def peer(steered: Any, open_peer: Any) -> Any:
    return open_peer(steered, "shared_memory")


def prefix(block_hash: bytes) -> pb.PurgeTarget:
    return pb.PurgeTarget(kind=pb.PURGE_KIND_PREFIX, namespace_id=NAMESPACE, block_hash=block_hash)


def purged(stub: Any, target: pb.PurgeTarget, **fields: Any) -> pb.PurgeReceipt:
    request = pb.PurgeBlocksRequest(target=target, **fields)
    receipt: pb.PurgeReceipt = stub.PurgeBlocks(request, timeout=30).receipt
    return receipt


def audit_lines(service: Any) -> list[dict[str, Any]]:
    path = service.settings.data_directory / "audit" / "000001.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def digest(hashes: list[BlockHash]) -> bytes:
    return hashlib.sha256(b"".join(sorted(hashes))).digest()


def test_a_purge_takes_out_of_every_tier_and_the_receipt_is_in_the_audit_log(
    steered: Any, stub: Any, peer: Any, tools: Any
) -> None:
    chain = tools.fresh_chain(4)
    peer.store(chain)
    steered.until(lambda stats: stats.pending_write_count == 0)
    dry = purged(stub, prefix(chain[1]), dry_run=True)
    assert peer.lookup(chain).present_count == 4
    receipt = purged(stub, prefix(chain[1]))
    assert receipt.hashes_sha256 == dry.hashes_sha256 == digest(chain[1:])
    assert [(each.tier, each.copy_count) for each in receipt.copies] == [
        (block_pb2.TIER_HOST, 3),
        (block_pb2.TIER_SSD, 3),
    ]
    assert {each.payload_bytes for each in receipt.copies} == {3 * tools.block_bytes}
    assert receipt.ssd_forgetting == pb.SSD_FORGETTING_DURABLE
    assert receipt.start_time.ToNanoseconds() <= receipt.end_time.ToNanoseconds()
    found = peer.lookup(chain)
    assert (found.present_count, found.miss_reason) == (1, block_pb2.MISS_REASON_PURGED)
    lines = audit_lines(steered)
    assert [line["outcome"] for line in lines[-2:]] == ["begun", "done"]
    assert receipt.purge_id in lines[-1]["target"]
    assert receipt.hashes_sha256.hex() in lines[-1]["target"]
    assert chain[1].hex()[:16] in lines[-2]["target"]
    assert not walk(steered.settings.data_directory / "audit").problem
    steered.check_integrity()


def test_a_purge_by_request_and_by_session(
    steered: Any, stub: Any, open_peer: Any, tools: Any
) -> None:
    one, other = open_peer(steered, "stream"), open_peer(steered, "stream")
    mine, yours = tools.fresh_chain(2), tools.fresh_chain(2)
    reserved = one.reserve(mine, "some-request/7")
    one.commit(reserved, one.write(reserved, mine))
    other.store(yours)
    by_request = pb.PurgeTarget(kind=pb.PURGE_KIND_REQUEST, of_request_id="some-request")
    assert purged(stub, by_request).hashes_sha256 == digest(mine)
    by_session = pb.PurgeTarget(kind=pb.PURGE_KIND_SESSION, of_session_id=other.id)
    assert purged(stub, by_session).hashes_sha256 == digest(yours)


@pytest.mark.parametrize(
    "target",
    [
        pb.PurgeTarget(),
        pb.PurgeTarget(kind=99),
        pb.PurgeTarget(kind=pb.PURGE_KIND_EVERYTHING, namespace_id=NAMESPACE),
        pb.PurgeTarget(kind=pb.PURGE_KIND_NAMESPACE),
        pb.PurgeTarget(kind=pb.PURGE_KIND_NAMESPACE, namespace_id=b"short"),
        pb.PurgeTarget(kind=pb.PURGE_KIND_PREFIX, namespace_id=NAMESPACE),
        pb.PurgeTarget(kind=pb.PURGE_KIND_PREFIX, block_hash=NAMESPACE),
        pb.PurgeTarget(kind=pb.PURGE_KIND_REQUEST),
        pb.PurgeTarget(kind=pb.PURGE_KIND_REQUEST, of_request_id="x" * 300),
        pb.PurgeTarget(kind=pb.PURGE_KIND_OWNER),
        pb.PurgeTarget(kind=pb.PURGE_KIND_OWNER, of_owner="a//b"),
        pb.PurgeTarget(kind=pb.PURGE_KIND_OWNER, of_owner="acme/"),
        pb.PurgeTarget(kind=pb.PURGE_KIND_OWNER, of_owner="acme", of_request_id="r"),
    ],
)
def test_a_target_that_is_not_exactly_one_thing_is_refused(
    stub: Any, peer: Any, tools: Any, target: pb.PurgeTarget
) -> None:
    chain = tools.fresh_chain(1)
    peer.store(chain)
    with pytest.raises(grpc.RpcError) as raised:
        purged(stub, target)
    assert read_error(raised.value).reason == "MALFORMED_REQUEST"
    assert peer.lookup(chain).present_count == 1


def test_what_is_not_remembered_is_refused(stub: Any) -> None:
    for target, reason in (
        (pb.PurgeTarget(kind=pb.PURGE_KIND_REQUEST, of_request_id="nobody"), "REQUEST_UNKNOWN"),
        (pb.PurgeTarget(kind=pb.PURGE_KIND_SESSION, of_session_id="nobody"), "SESSION_UNKNOWN"),
    ):
        with pytest.raises(grpc.RpcError) as raised:
            purged(stub, target)
        error = read_error(raised.value)
        assert (error.reason, error.code) == (reason, grpc.StatusCode.NOT_FOUND)


def test_a_purge_whose_caller_goes_away_has_its_receipt_in_the_audit_log(
    make_service: Any, open_peer: Any, tools: Any
) -> None:
    service = make_service(host={"capacity_bytes": "64MiB"})
    peer = open_peer(service, "stream", block_bytes=4096)
    for _ in range(12):
        chain = tools.fresh_chain(500)
        reserved = peer.reserve(chain)
        peer.commit(reserved, peer.write(reserved, chain, tools.filled_pages(chain, 4096)))
    stub = control_pb2_grpc.ControlServiceStub(service.channel)
    request = pb.PurgeBlocksRequest(target=pb.PurgeTarget(kind=pb.PURGE_KIND_EVERYTHING))
    call = stub.PurgeBlocks.future(request, timeout=30)
    service.until(lambda stats: stats.tiers[0].block_count < 6000)
    call.cancel()
    service.until(lambda stats: "purges" in stats.counters)
    waiting = threading.Event()
    for _ in range(500):
        last = audit_lines(service)[-1]
        if last["outcome"] != "begun":
            break
        waiting.wait(0.02)
    assert "blocks=6000" in last["target"]
    service.check_integrity()


def pin_request(block_hash: bytes, **fields: Any) -> pb.PinPrefixRequest:
    named: dict[str, Any] = {"namespace_id": NAMESPACE, "block_hash": block_hash, "owner": "ann"}
    return pb.PinPrefixRequest(**(named | {"ttl": Duration(seconds=60)} | fields))


def test_a_pin_is_listed_audited_in_the_way_of_a_purge_and_there_after_a_restart(
    make_service: Any, open_peer: Any, tools: Any
) -> None:
    service = make_service()
    stub = control_pb2_grpc.ControlServiceStub(service.channel)
    peer, chain = open_peer(service, "shared_memory"), tools.fresh_chain(3)
    peer.store(chain)
    service.until(lambda stats: stats.pending_write_count == 0)
    pin = stub.PinPrefix(pin_request(chain[1]), timeout=10).pin
    assert (pin.block_count, pin.cached_count, pin.ssd_count) == (2, 2, 2)
    assert (pin.block_hash, pin.owner, pin.survives_restart) == (chain[1], "ann", True)
    assert pin.expire_time.ToSeconds() - pin.create_time.ToSeconds() == 60
    assert pin.pin_id in audit_lines(service)[-1]["target"]
    with pytest.raises(grpc.RpcError) as raised:
        purged(stub, prefix(chain[0]))
    assert read_error(raised.value).reason == "BLOCKS_PINNED"
    service.stop()
    service = make_service(service.settings.data_directory)
    stub = control_pb2_grpc.ControlServiceStub(service.channel)
    assert [each.pin for each in stub.ListPins(pb.ListPinsRequest(), timeout=10)] == [pin]
    receipt = purged(stub, prefix(chain[0]), force=True)
    assert (receipt.pin_count, receipt.block_count) == (1, 3)
    assert not list(stub.ListPins(pb.ListPinsRequest(), timeout=10))


@pytest.mark.parametrize(
    "changes",
    [
        {"owner": ""},
        {"owner": "x" * 300},
        {"ttl": Duration()},
        {"ttl": Duration(seconds=-1)},
        {"ttl": Duration(seconds=31 * 86_400)},
        {"block_hash": b"short"},
        {"namespace_id": b""},
    ],
)
def test_a_pin_that_says_too_little_or_too_much_is_refused(
    stub: Any, peer: Any, tools: Any, changes: dict[str, Any]
) -> None:
    chain = tools.fresh_chain(1)
    peer.store(chain)
    with pytest.raises(grpc.RpcError) as raised:
        stub.PinPrefix(pin_request(**({"block_hash": chain[0]} | changes)), timeout=10)
    assert read_error(raised.value).reason == "MALFORMED_REQUEST"


def test_pins_have_their_share_and_no_more(steered: Any, stub: Any, peer: Any, tools: Any) -> None:
    chain = tools.fresh_chain(40)
    peer.store(chain)
    with pytest.raises(grpc.RpcError) as raised:
        stub.PinPrefix(pin_request(chain[-1]), timeout=10)
    error = read_error(raised.value)
    assert (error.reason, error.code) == ("PIN_QUOTA", grpc.StatusCode.RESOURCE_EXHAUSTED)
    with pytest.raises(grpc.RpcError) as raised:
        stub.UnpinPrefix(pb.UnpinPrefixRequest(pin_id="ab" * 16), timeout=10)
    assert read_error(raised.value).reason == "PIN_UNKNOWN"


# -- the command ---------------------------------------------------------------------------------


def ran(service: Any, *arguments: str) -> Any:
    return CliRunner().invoke(app, ["purge", "--address", service.address, *arguments])


def test_the_command_shows_a_receipt_and_gives_one_object(
    steered: Any, peer: Any, tools: Any
) -> None:
    chain = tools.fresh_chain(3)
    peer.store(chain)
    named = ["--block", chain[0].hex(), "--namespace", NAMESPACE.hex()]
    shown = ran(steered, *named, "--dry-run")
    assert shown.exit_code == 0
    assert "would leave" in shown.stdout
    assert digest(chain).hex() in shown.stdout
    said = json.loads(ran(steered, *named, "--json").stdout)
    assert (said["kind"], said["block_count"]) == ("prefix", 3)
    assert said["hashes_sha256"] == digest(chain).hex()
    assert (said["dry_run"], said["ssd_forgetting"]) == (False, "durable")
    again = ran(steered, *named)
    assert "forgotten them durably" in again.stdout
    assert json.loads(ran(steered, *named, "--json").stdout)["block_count"] == 0


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "say what to purge"),
        (["a prompt", "--everything"], "say what to purge"),
        (["--everything", "--request", "r"], "one thing"),
        (["--block", "00"], "--namespace"),
        (["--namespace", "xyz"], "64 hexadecimal digits"),
        (["--tenant", "a/b"], "one of / , *"),
        (["--tenant", "acme", "--user", "ann"], "name the project too"),
    ],
)
def test_a_command_that_makes_no_sense_says_so(
    steered: Any, arguments: list[str], word: str
) -> None:
    outcome = ran(steered, *arguments)
    assert outcome.exit_code == 2
    assert word in outcome.stderr


def test_a_tenants_blocks_are_listed_and_purged(steered: Any, peer: Any, tools: Any) -> None:
    chain, other = tools.fresh_chain(6), tools.fresh_chain(1)
    ladder = [
        cache_pb2.OwnerRun(block_count=1),
        cache_pb2.OwnerRun(owner="acme", block_count=2),
        cache_pb2.OwnerRun(owner="acme/search", block_count=2**31 - 1),
    ]
    beta = [cache_pb2.OwnerRun(owner="beta", block_count=9)]
    for hashes, runs in ((chain, ladder), (other, beta)):
        reserved = peer.reserve(hashes, owner_runs=runs)
        peer.commit(reserved, peer.write(reserved, hashes))
    steered.until(lambda stats: stats.pending_write_count == 0)

    def owners(*more: str) -> Any:
        named = ["stats", "--owners", "--address", steered.address, *more]
        return CliRunner().invoke(app, named)

    said = json.loads(owners("--json").stdout)
    size = tools.block_bytes
    assert said["owner_count"] == 3
    assert said["owners"][0] == {
        "owner": "acme/search",
        "tiers": [
            {"tier": "host", "block_count": 3, "payload_bytes": 3 * size},
            {"tier": "ssd", "block_count": 3, "payload_bytes": 3 * size},
        ],
    }
    assert said["total"]["tiers"][0] == {
        "tier": "host",
        "block_count": 6,
        "payload_bytes": 6 * size,
    }
    shown = owners().stdout
    assert "acme/search" in shown
    assert "nobody" in shown
    narrow = ran(steered, "--tenant", "acme", "--project", "search", "--dry-run", "--json")
    assert json.loads(narrow.stdout)["hashes_sha256"] == digest(chain[3:]).hex()
    receipt = json.loads(ran(steered, "--tenant", "acme", "--json").stdout)
    assert (receipt["kind"], receipt["owner"]) == ("owner", "acme")
    assert receipt["hashes_sha256"] == digest(chain[1:]).hex()
    assert json.loads(owners("--json").stdout)["owner_count"] == 1
    assert peer.lookup(chain).present_count == 1


def test_a_refusal_says_what_to_do(steered: Any) -> None:
    outcome = ran(steered, "--request", "nobody")
    assert outcome.exit_code == 1
    assert "REQUEST_UNKNOWN" in outcome.stderr
    assert "purge its prefix" in outcome.stderr


def test_quotas_are_shown_beside_what_counts_against_them(
    make_service: Any, open_peer: Any, tools: Any
) -> None:
    size = tools.block_bytes
    quotas = (
        f"acme host_soft={size} host_hard={3 * size}, gamma host_soft={size}, * ssd_hard={size}"
    )
    service = make_service(quotas=quotas)
    peer = open_peer(service, "stream")
    for owner, count, stored in (("acme", 4, 3), ("beta/x", 2, 2)):
        chain = tools.fresh_chain(count)
        runs = [cache_pb2.OwnerRun(owner=owner, block_count=count)]
        reserved = peer.reserve(chain, owner_runs=runs)
        assert len(reserved.missing_indexes) == stored
        peer.commit(reserved, peer.write(reserved, chain))
        if stored < count:
            assert reserved.refused_reason == block_pb2.MISS_REASON_QUOTA
            assert peer.lookup(chain).miss_reason == block_pb2.MISS_REASON_QUOTA
    service.until(lambda stats: stats.pending_write_count == 0)
    # Nothing of it is stored yet, and it takes room from others already.
    chain = tools.fresh_chain(2)
    runs = [cache_pb2.OwnerRun(owner="gamma", block_count=2)]
    assert len(peer.reserve(chain, owner_runs=runs).missing_indexes) == 2
    named = ["stats", "--owners", "--address", service.address]
    shown = CliRunner().invoke(app, named)
    assert "borrowed" in shown.stdout
    assert "100%" in shown.stdout
    said = json.loads(CliRunner().invoke(app, [*named, "--json"]).stdout)
    found = {quota["owner"]: quota["tiers"] for quota in said["quotas"]}
    assert found["acme"][0] == {
        "tier": "host",
        "payload_bytes": 3 * size,
        "reserved_bytes": 0,
        "soft_bytes": size,
        "borrowed_bytes": 2 * size,
        "hard_bytes": 3 * size,
    }
    assert found["beta"][1] == {
        "tier": "ssd",
        "payload_bytes": size,
        "reserved_bytes": 0,
        "soft_bytes": None,
        "borrowed_bytes": 0,
        "hard_bytes": size,
    }
    assert found["gamma"][0] == {
        "tier": "host",
        "payload_bytes": 0,
        "reserved_bytes": 2 * size,
        "soft_bytes": size,
        "borrowed_bytes": size,
        "hard_bytes": None,
    }
    service.check_integrity()


def cli(service: Any, command: str, *arguments: str, width: int = 80) -> Any:
    words = [command, "--address", service.address, *arguments]
    return CliRunner().invoke(app, words, env={"COLUMNS": str(width)})


def test_pins_on_the_command_line(steered: Any, peer: Any, tools: Any) -> None:
    chain = tools.fresh_chain(2)
    peer.store(chain)
    named = ["--block", chain[1].hex(), "--namespace", NAMESPACE.hex()]
    made = json.loads(
        cli(steered, "pin", *named, "--owner", "ann", "--for", "12h", "--json").stdout
    )
    assert (made["block_count"], made["owner"]) == (2, "ann")
    for width, ways in ((80, "pin    "), (120, "pin  ")):
        shown = cli(steered, "pins", width=width).stdout
        assert made["pin_id"] in shown
        assert shown.startswith(ways)
        assert "…" not in shown
        lines = shown.splitlines()
        assert max(map(len, lines)) <= width
        assert any(line.split() == ["owner", "ann"] for line in lines) == (width == 80)
    (listed,) = json.loads(cli(steered, "pins", "--json").stdout)["pins"]
    assert listed["pin_id"] == made["pin_id"]
    outcome = cli(steered, "purge", *named)
    assert outcome.exit_code == 1
    assert "BLOCKS_PINNED" in outcome.stderr
    assert cli(steered, "unpin", made["pin_id"]).exit_code == 0
    assert "Nothing is pinned" in cli(steered, "pins").stdout
    again = cli(steered, "unpin", made["pin_id"])
    assert again.exit_code == 1
    assert "PIN_UNKNOWN" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "give a prompt"),
        (["a prompt"], "--owner"),
        (["--block", "00", "--owner", "ann"], "64 hexadecimal digits"),
        (["a prompt", "--owner", "ann", "--for", "soon"], "30m"),
    ],
)
def test_a_pin_command_that_makes_no_sense_says_so(
    steered: Any, arguments: list[str], word: str
) -> None:
    outcome = cli(steered, "pin", *arguments)
    assert outcome.exit_code == 2
    assert word in outcome.stderr


def warmed(stub: Any, block_hash: bytes, bytes_max: int = 0) -> list[pb.PrewarmPrefixResponse]:
    request = pb.PrewarmPrefixRequest(
        namespace_id=NAMESPACE, block_hash=block_hash, bytes_max=bytes_max
    )
    return list(stub.PrewarmPrefix(request, timeout=20))


def test_a_prefix_is_brought_into_memory_within_its_budget_and_not_twice(
    make_service: Any, open_peer: Any, tools: Any
) -> None:
    service = make_service()
    chain = tools.fresh_chain(7)
    open_peer(service, "shared_memory").store(chain)
    service.until(lambda stats: stats.pending_write_count == 0)
    service.stop()
    service = make_service(service.settings.data_directory)
    stub = control_pb2_grpc.ControlServiceStub(service.channel)
    peer = open_peer(service, "shared_memory")
    size = tools.block_bytes
    first = warmed(stub, chain[5], bytes_max=2 * size + 10_000)[-1]
    assert (first.block_count, first.host_count, first.wanted_count) == (6, 0, 2)
    assert (first.loaded_count, first.loaded_bytes, first.done) == (2, 2 * size, True)
    assert f"blocks=2 bytes={2 * size}" in audit_lines(service)[-1]["target"]
    *before, last = warmed(stub, chain[5])
    assert not any(each.done for each in before)
    assert (last.host_count, last.wanted_count, last.loaded_count) == (2, 4, 4)
    assert last.miss_reason == 0
    assert list(peer.lookup(chain).tiers) == [block_pb2.TIER_HOST] * 6 + [block_pb2.TIER_SSD]
    assert warmed(stub, chain[5])[-1].wanted_count == 0
    service.check_integrity()


def test_what_cannot_be_prewarmed_is_refused(stub: Any, peer: Any, tools: Any) -> None:
    chain = tools.fresh_chain(1)
    peer.store(chain)
    for request, reason in (
        (pb.PrewarmPrefixRequest(namespace_id=NAMESPACE, block_hash=bytes(32)), "BLOCK_NOT_CACHED"),
        (pb.PrewarmPrefixRequest(namespace_id=bytes(32), block_hash=chain[0]), "BLOCK_NOT_CACHED"),
        (pb.PrewarmPrefixRequest(namespace_id=NAMESPACE), "MALFORMED_REQUEST"),
        (
            pb.PrewarmPrefixRequest(namespace_id=NAMESPACE, block_hash=chain[0], bytes_max=-1),
            "MALFORMED_REQUEST",
        ),
    ):
        with pytest.raises(grpc.RpcError) as raised:
            list(stub.PrewarmPrefix(request, timeout=10))
        assert read_error(raised.value).reason == reason
