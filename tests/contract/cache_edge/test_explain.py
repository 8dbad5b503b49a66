"""ExplainService and what `kvtier cache explain` and `tree` make of it, against real services."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from kvtier.errors import read_error
from kvtier.keys import BlockHash, pack_hashes
from kvtier.principals import Role, role_uri
from kvtier.v1 import block_pb2, cache_pb2, cache_pb2_grpc, explain_pb2_grpc
from kvtier.v1 import explain_pb2 as pb
from tests.pki import Pki

ROOT = Path(__file__).parents[3]
NAMESPACE = bytes(range(32))


@pytest.fixture(scope="module")
def told(make_service: Any) -> Any:
    """Eight blocks fit its memory, sixty its SSD."""
    return make_service(host={"capacity_bytes": "10MiB"})


@pytest.fixture(scope="module")
def stub(told: Any) -> Any:
    return explain_pb2_grpc.ExplainServiceStub(told.channel)


@pytest.fixture
def peer(told: Any, open_peer: Any) -> Any:
    return open_peer(told, "shared_memory")


def explained(stub: Any, chain: list[Any], **fields: Any) -> pb.ExplainPrefixResponse:
    request = pb.ExplainPrefixRequest(
        **{"namespace_id": NAMESPACE, "block_hashes": pack_hashes(chain)} | fields
    )
    response: pb.ExplainPrefixResponse = stub.ExplainPrefix(request, timeout=10)
    return response


def listed(stub: Any, **fields: Any) -> tuple[list[pb.TreeNode], bytes]:
    nodes, token = [], b""
    for response in stub.ListTree(pb.ListTreeRequest(**fields), timeout=10):
        nodes += list(response.nodes)
        token = response.next_page_token
    return nodes, token


def fork(peer: Any, parent: Any, children: list[Any]) -> None:
    """Stores chains of two blocks that share the first."""
    for child in children:
        chain = [parent, child]
        reserved = peer.reserve(chain)
        assert peer.commit(reserved, peer.write(reserved, chain))


def counted(told: Any) -> dict[str, int]:
    """But for the scrubber, which goes round by itself."""
    counters = told.stats().counters
    return {name: counters[name] for name in counters if not name.endswith("_scrubbed")}


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return read_error(raised.value).reason


def cli(address: str, *words: str, width: int = 100) -> subprocess.CompletedProcess[str]:
    command = "from kvtier.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", command, "cache", *words, "--address", address],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}", "COLUMNS": str(width)},
        check=False,
    )


def test_what_is_explained_is_what_an_acquire_then_finds(
    told: Any, stub: Any, peer: Any, tools: Any
) -> None:
    chain = tools.fresh_chain(6)
    peer.store(chain)
    told.until(lambda stats: stats.pending_write_count == 0)
    for _ in range(3):  # pushes what leaves first out of memory
        peer.store(tools.fresh_chain(2))
        told.until(lambda stats: stats.pending_write_count == 0)
    asked = [*chain, *tools.fresh_chain(1)]
    before = counted(told)
    said = explained(stub, asked)
    assert counted(told) == before
    assert {share.tier for share in said.shares} == {block_pb2.TIER_HOST, block_pb2.TIER_SSD}
    events = peer.acquire(asked, request_id="the very one")
    match = events[0].match
    assert (said.present_count, said.tiers) == (match.matched_count, match.tiers)
    assert said.miss_reason == match.miss_reason == block_pb2.MISS_REASON_NEVER_STORED
    assert (said.divergence.index, said.divergence.chain_count) == (6, 0)
    (record,) = stub.ExplainAcquire(
        pb.ExplainAcquireRequest(request_id="the very one"), timeout=10
    ).acquires
    assert record.state == pb.ACQUIRE_STATE_ENDED
    assert (record.asked_count, record.matched_count, record.ready_count) == (7, 6, 6)
    assert list(record.shares) == list(said.shares)
    assert explained(stub, chain).HasField("load_time"), "it was just measured"
    by_lease = pb.ExplainAcquireRequest(lease_id=record.lease_id)
    assert stub.ExplainAcquire(by_lease, timeout=10).acquires[0].request_id == "the very one"


def test_pages_of_the_tree_are_the_tree(stub: Any, peer: Any, tools: Any) -> None:
    first, second = tools.fresh_chain(2), tools.fresh_chain(2)
    fork(peer, first[0], second)
    whole, token = listed(stub)
    assert token == b""
    paged: list[pb.TreeNode] = []
    while True:
        nodes, token = listed(stub, page_size=1, page_token=token)
        assert len(nodes) <= 1
        paged += nodes
        if not token:
            break
    assert [node.block_hash for node in paged] == [node.block_hash for node in whole]
    under, _ = listed(stub, under_block_hash=first[0])
    assert [node.child_count for node in under] == [2, 0, 0]
    assert {node.parent_block_hash for node in under[1:]} == {first[0]}
    assert listed(stub, namespace_id=bytes(32)) == ([], b"")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"page_size": -1}, "MALFORMED_REQUEST"),
        ({"page_size": 10_001}, "MALFORMED_REQUEST"),
        ({"page_token": b"x"}, "MALFORMED_REQUEST"),
        ({"namespace_id": b"x"}, "MALFORMED_REQUEST"),
        ({"under_block_hash": bytes(32)}, "BLOCK_NOT_CACHED"),
    ],
)
def test_listings_that_make_no_sense_are_refused(stub: Any, fields: Any, reason: str) -> None:
    assert refusal(lambda: listed(stub, **fields)) == reason


def test_questions_that_make_no_sense_are_refused(stub: Any, tools: Any) -> None:
    chain = tools.fresh_chain(1)
    assert refusal(lambda: explained(stub, [])) == "MALFORMED_HASHES"
    assert refusal(lambda: explained(stub, chain * 2)) == "MALFORMED_HASHES"
    assert refusal(lambda: explained(stub, chain, namespace_id=b"x")) == "INVALID_NAMESPACE"
    assert refusal(lambda: explained(stub, chain, block_bytes=-1)) == "MALFORMED_REQUEST"
    for fields in ({}, {"request_id": "a", "lease_id": "b"}):
        request = pb.ExplainAcquireRequest(**fields)
        assert refusal(lambda: stub.ExplainAcquire(request, timeout=10)) == "MALFORMED_REQUEST"  # noqa: B023
    request = pb.ExplainAcquireRequest(request_id="nobody's")
    assert refusal(lambda: stub.ExplainAcquire(request, timeout=10)) == "ACQUIRE_UNKNOWN"


def test_no_more_other_scopes_than_a_ladder_has(stub: Any, tools: Any) -> None:
    chain = tools.fresh_chain(2)
    packed = pack_hashes(chain)
    assert explained(stub, chain, other_scope_hashes=[packed] * 8).present_count == 0
    nine = [packed] * 9
    assert refusal(lambda: explained(stub, chain, other_scope_hashes=nine)) == "MALFORMED_REQUEST"
    for bad in (b"", packed[:-1], packed * 2):
        asked = {"other_scope_hashes": [bad]}
        assert refusal(lambda: explained(stub, chain, **asked)) == "MALFORMED_HASHES"  # noqa: B023


@pytest.fixture
def secured(
    make_service: Any, short_directory: Callable[[], Path]
) -> Iterator[tuple[Any, Callable[..., grpc.Channel]]]:
    pki = Pki(short_directory() / "tls")
    service = make_service(security=pki.security.model_dump())
    channels: list[grpc.Channel] = []

    def connect(role: Role) -> grpc.Channel:
        credentials = pki.client(role_uri(role, ("acme",) if role is Role.TENANT else ()))
        channels.append(grpc.secure_channel(service.address, credentials))
        return channels[-1]

    yield service, connect
    for channel in channels:
        channel.close()


def test_an_engine_sees_its_own_acquires_and_an_operator_all(secured: Any, tools: Any) -> None:
    _, connect = secured
    one, other, operator = connect(Role.ENGINE), connect(Role.ENGINE), connect(Role.OPERATOR)
    data = cache_pb2_grpc.CacheServiceStub(one)
    opened = data.OpenSession(tools.open_request("stream"), timeout=10)
    acquire = cache_pb2.AcquirePrefixRequest(
        session_id=opened.session_id,
        request_id="mine",
        block_hashes=pack_hashes(tools.fresh_chain(1)),
    )
    list(data.AcquirePrefix(acquire, timeout=10))
    ask = pb.ExplainAcquireRequest(request_id="mine")
    for channel, there in ((one, True), (other, False), (operator, True)):
        explaining = explain_pb2_grpc.ExplainServiceStub(channel)
        if there:
            assert len(explaining.ExplainAcquire(ask, timeout=10).acquires) == 1
        else:
            assert refusal(lambda: explaining.ExplainAcquire(ask, timeout=10)) == "ACQUIRE_UNKNOWN"  # noqa: B023
    for channel in (one, connect(Role.TENANT), connect(Role.AUDITOR)):
        explaining = explain_pb2_grpc.ExplainServiceStub(channel)
        assert refusal(lambda: listed(explaining)) == "ROLE_NOT_ALLOWED"  # noqa: B023


def test_other_scopes_are_told_to_operators_alone(secured: Any, tools: Any, open_peer: Any) -> None:
    """An engine that names both chains is told of each by itself, and of none by the other."""
    _, connect = secured
    engine, operator = connect(Role.ENGINE), connect(Role.OPERATOR)
    peer = open_peer(SimpleNamespace(stub=cache_pb2_grpc.CacheServiceStub(engine)), "stream")
    there, asked, foreign = tools.fresh_chain(1), tools.fresh_chain(1), tools.fresh_chain(1)

    def acquired() -> bytes:
        answers = [*peer.acquire(asked), peer.acquire_resident(asked), peer.lookup(asked)]
        return b"".join(each.SerializeToString(deterministic=True) for each in answers)

    before = acquired()
    peer.store(there)
    assert acquired() == before

    both = {"other_scope_hashes": [pack_hashes(foreign), pack_hashes(there)]}
    said = explained(explain_pb2_grpc.ExplainServiceStub(operator), asked, **both)
    assert (said.present_count, said.miss_reason) == (0, block_pb2.MISS_REASON_OTHER_SCOPE)
    assert (said.other_scope.index, said.other_scope.present_count) == (1, 1)
    told = explained(explain_pb2_grpc.ExplainServiceStub(engine), asked)
    assert told.miss_reason == block_pb2.MISS_REASON_NEVER_STORED
    assert not told.HasField("other_scope")
    for role in (Role.ENGINE, Role.TENANT, Role.BILLER, Role.AUDITOR):
        explaining = explain_pb2_grpc.ExplainServiceStub(connect(role))
        assert refusal(lambda: explained(explaining, asked, **both)) == "ROLE_NOT_ALLOWED"  # noqa: B023


def test_the_tree_is_drawn_and_told_to_programs(told: Any, peer: Any) -> None:
    # As real hashes are: they differ in the digits that are shown.
    first, *second = (BlockHash(hashlib.sha256(name).digest()) for name in (b"1", b"2", b"3"))
    fork(peer, first, second)
    drawn = cli(told.address, "tree")
    assert (drawn.returncode, drawn.stderr) == (0, "")
    lines = drawn.stdout.splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith(first.hex()[:10]))
    assert [line[:3] for line in lines[place + 1 : place + 3]] == ["├─ ", "└─ "]
    assert "#1" in drawn.stdout
    printed = cli(told.address, "tree", "--json", "--under", first.hex())
    data = json.loads(printed.stdout)
    assert data["whole"]
    assert [node["block_count"] for node in data["nodes"]] == [1, 1, 1]
    short = json.loads(cli(told.address, "tree", "--json", "--under", first.hex()[:20]).stdout)
    assert {node["block_hash"] for node in short["nodes"]} == {
        node["block_hash"] for node in data["nodes"]
    }
    few = cli(told.address, "tree", "--nodes", "1", "--lines", "1")
    assert "--nodes asks for more" in few.stderr
    assert few.returncode == 0
    for words, status, reason in (
        (("--under", "00ff00ff"), 1, "PREFIX_UNKNOWN"),
        (("--under", "xyz"), 2, "hexadecimal"),
        (("--namespace", "12"), 2, "64 hexadecimal digits"),
        (("--under", "0" * 64), 1, "BLOCK_NOT_CACHED"),
    ):
        failed = cli(told.address, "tree", *words)
        assert (failed.returncode, failed.stdout) == (status, "")
        assert reason in failed.stderr


def test_the_tree_names_owners(told: Any, peer: Any, tools: Any) -> None:
    chain = [BlockHash(hashlib.sha256(name).digest()) for name in (b"owned", b"more")]
    runs = [cache_pb2.OwnerRun(owner="acme/search/ann", block_count=2)]
    reserved = peer.reserve(chain, owner_runs=runs)
    assert peer.commit(reserved, peer.write(reserved, chain))
    under = ("--under", chain[0].hex())
    drawn = cli(told.address, "tree", *under)
    (line,) = [x for x in drawn.stdout.splitlines() if x.startswith(chain[0].hex()[:10])]
    assert line.rstrip().endswith("acme/search/ann")
    (node,) = json.loads(cli(told.address, "tree", "--json", *under).stdout)["nodes"]
    assert node["owner"] == "acme/search/ann"
    narrow = cli(told.address, "tree", *under, width=80).stdout
    assert "…" not in narrow
    assert chain[0].hex()[:10] in narrow


def test_a_request_is_explained_in_the_terminal(told: Any, peer: Any, tools: Any) -> None:
    chain = tools.fresh_chain(3)
    peer.store(chain[:2])
    peer.acquire(chain, request_id="late one")
    printed = cli(told.address, "explain", "--request", "late one", width=200)
    assert (printed.returncode, printed.stderr) == (0, "")
    assert "asked for 3 blocks; 2 were there (2 host memory); 2 became readable" in printed.stdout
    assert "never_stored" in printed.stdout
    (record,) = json.loads(cli(told.address, "explain", "--request", "late one", "--json").stdout)[
        "acquires"
    ]
    assert (record["matched_count"], record["match_reason"]) == (2, "never_stored")
    assert record["shares"]["host"]["block_count"] == 2
    unknown = cli(told.address, "explain", "--request", "nobody's")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "ACQUIRE_UNKNOWN" in unknown.stderr
    nothing = cli(told.address, "explain")
    assert (nothing.returncode, nothing.stdout) == (2, "")
    assert "--request" in nothing.stderr
