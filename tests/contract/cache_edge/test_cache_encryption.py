"""A service whose SSD is encrypted: nothing in clear on the disk; shreds that hold."""

import json
import shutil
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner

from cache_service.audit.walk import walk
from cache_service.commands import app
from cache_service.master_keys import MasterKeyFileError
from kvtier.errors import read_error
from kvtier.keys import BlockHash
from kvtier.principals import EVERY_ROLE, Role
from kvtier.v1 import block_pb2, cache_pb2, control_pb2_grpc
from kvtier.v1 import control_pb2 as pb
from storage.errors import MasterKeyNeededError, MasterKeyWrongError
from storage.ssd.encryption import DataKey
from storage.ssd.key_file import MasterKey, parse_key_file
from tests.pki import Pki

SIZES = {"capacity_bytes": "64MiB", "segment_bytes": "16MiB"}
PATTERN = b"the tides of the northern harbour, section 0; "
ALL = pb.PurgeTarget(kind=pb.PURGE_KIND_EVERYTHING)


@pytest.fixture
def master_key(short_directory: Any) -> Path:
    return made_key(short_directory(), 1)


def made_key(directory: Path, number: int) -> Path:
    path = directory / f"master-{number}"
    path.write_bytes(bytes([number]) * 32)
    path.chmod(0o600)
    return path


def encrypted(master: Path, *old: Path, **more: Any) -> dict[str, Any]:
    named = {"encryption": "aes_256_gcm", "master_key_file": str(master)}
    return {"ssd": SIZES | named | {"old_master_key_files": [str(each) for each in old]} | more}


def of(owner: str) -> pb.PurgeTarget:
    return pb.PurgeTarget(kind=pb.PURGE_KIND_OWNER, of_owner=owner)


def shredded(service: Any, target: pb.PurgeTarget, **fields: Any) -> pb.PurgeReceipt:
    request = pb.PurgeBlocksRequest(target=target, shred=True, **fields)
    stub = control_pb2_grpc.ControlServiceStub(service.channel)
    receipt: pb.PurgeReceipt = stub.PurgeBlocks(request, timeout=30).receipt
    return receipt


def refusal(service: Any, target: pb.PurgeTarget) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        shredded(service, target)
    return read_error(caught.value)


def store(service: Any, peer: Any, tools: Any, owner: str, count: int = 3) -> list[BlockHash]:
    """Pages full of a text, one block each; on the SSD on return."""
    chain = tools.fresh_chain(count)
    runs = [cache_pb2.OwnerRun(owner=owner, block_count=count)] if owner else []
    reserved = peer.reserve(chain, owner_runs=runs)
    pages = tools.empty_pages(count)
    text = (PATTERN * (tools.block_bytes // len(PATTERN) + 1))[: tools.block_bytes]
    for page in pages:
        page[:] = memoryview(text)
    assert peer.commit(reserved, peer.write(reserved, chain, pages)) == count
    service.until(lambda stats: stats.pending_write_count == 0)
    return chain


def every_byte(service: Any) -> bytes:
    files = (f for f in sorted(service.settings.data_directory.rglob("*")) if f.is_file())
    return b"".join(f.read_bytes() for f in files)


def opened_keys(service: Any, master: Path) -> dict[str, DataKey]:
    """As whoever has the directory and the master key opens them; the newest of each."""
    raw = (service.settings.data_directory / "ssd" / "KEYS").read_bytes()
    file = parse_key_file(raw)
    wrapping = MasterKey(master.read_bytes())
    return {each.organisation: wrapping.unwrap(file.store_id, each) for each in file.keys}


def lookup(service: Any, open_peer: Any, chain: list[BlockHash]) -> int:
    count: int = open_peer(service, "shared_memory").lookup(chain).present_count
    return count


def test_nothing_of_a_payload_is_on_the_disk_and_it_comes_back_after_a_restart(
    make_service: Any, open_peer: Any, tools: Any, master_key: Path
) -> None:
    plain = make_service()
    store(plain, open_peer(plain, "shared_memory"), tools, "acme")
    plain.stop()
    assert PATTERN in every_byte(plain)
    service = make_service(**encrypted(master_key))
    chain = store(service, open_peer(service, "shared_memory"), tools, "acme/search")
    found = service.stats().ssd_encryption
    assert (found.method, found.encrypted_count, found.clear_count) == ("aes_256_gcm", 3, 0)
    service.stop()
    raw = every_byte(service)
    assert chain[0] in raw
    for start in range(0, len(PATTERN) - 16, 8):
        assert PATTERN[start : start + 16] not in raw
    assert master_key.read_bytes() not in raw
    for key in opened_keys(service, master_key).values():
        assert key.secret not in raw
    again = make_service(service.settings.data_directory, **encrypted(master_key))
    peer = open_peer(again, "shared_memory")
    events = peer.acquire(chain)
    assert events[0].match.tiers == bytes([block_pb2.TIER_SSD] * 3)
    assert all(payload.startswith(PATTERN) for payload in peer.read(events))
    again.check_integrity()


def test_a_shred_leaves_nothing_that_opens_also_when_the_index_is_lost(
    make_service: Any, open_peer: Any, tools: Any, master_key: Path
) -> None:
    service = make_service(**encrypted(master_key))
    peer = open_peer(service, "shared_memory")
    mine, theirs = (store(service, peer, tools, o) for o in ("acme/search", "bert"))
    keys = opened_keys(service, master_key)
    dry = shredded(service, of("acme"), dry_run=True)
    assert list(dry.shred.key_ids) == [keys["acme"].key_id]
    assert dry.shred.destruction == pb.KEY_DESTRUCTION_NONE
    assert not dry.shred.HasField("destroy_time")
    assert lookup(service, open_peer, mine) == 3
    receipt = shredded(service, of("acme"))
    assert (receipt.block_count, receipt.ssd_forgetting) == (3, pb.SSD_FORGETTING_DURABLE)
    assert list(receipt.shred.key_ids) == [keys["acme"].key_id]
    assert receipt.shred.destruction == pb.KEY_DESTRUCTION_DURABLE
    assert receipt.shred.destroy_time == receipt.end_time
    assert (receipt.shred.clear_count, receipt.shred.clear_segment_count) == (0, 0)
    # With the master key still at hand.
    assert opened_keys(service, master_key).keys() == {"bert"}
    raw = every_byte(service)
    assert mine[0] in raw, "its record is still there"
    assert (
        keys["acme"].key_id.hex().encode()
        not in (service.settings.data_directory / "ssd" / "KEYS").read_bytes()
    )
    line = json.loads(
        (service.settings.data_directory / "audit" / "000001.jsonl").read_text().splitlines()[-1]
    )
    assert keys["acme"].key_id.hex() in line["target"]
    assert "shred=(keys=1 destruction=durable" in line["target"]
    assert not walk(service.settings.data_directory / "audit").problem
    again = shredded(service, of("acme"))
    assert (again.block_count, list(again.shred.key_ids)) == (0, [])
    assert again.shred.destruction == pb.KEY_DESTRUCTION_DURABLE
    # A new block has a new key.
    fresh = store(service, peer, tools, "acme")
    assert opened_keys(service, master_key)["acme"].secret != keys["acme"].secret
    service.stop()
    shutil.rmtree(service.settings.data_directory / "ssd" / "index")
    rebuilt = make_service(service.settings.data_directory, **encrypted(master_key))
    assert lookup(rebuilt, open_peer, mine) == 0
    assert lookup(rebuilt, open_peer, theirs) == 3
    assert lookup(rebuilt, open_peer, fresh) == 3
    stats = rebuilt.stats()
    assert stats.recovery.dropped_count == 3
    assert any("destroyed" in problem for problem in stats.recovery.problems)
    assert stats.ssd_encryption.destroyed_key_count == 1
    rebuilt.check_integrity()


def test_what_a_shred_does_not_reach_is_in_the_receipt(
    make_service: Any, open_peer: Any, tools: Any, master_key: Path
) -> None:
    service = make_service()
    store(service, open_peer(service, "shared_memory"), tools, "acme")
    service.stop()
    service = make_service(service.settings.data_directory, **encrypted(master_key))
    found = service.stats().ssd_encryption
    assert (found.encrypted_count, found.clear_count, found.clear_segment_count) == (0, 3, 1)
    store(service, open_peer(service, "shared_memory"), tools, "acme", 2)
    found = service.stats().ssd_encryption
    assert (found.encrypted_count, found.clear_count) == (2, 3)
    receipt = shredded(service, of("acme"))
    assert (receipt.block_count, len(receipt.shred.key_ids)) == (5, 1)
    assert (receipt.shred.clear_count, receipt.shred.clear_segment_count) == (3, 1)
    assert service.stats().ssd_encryption.clear_count == 0


def test_everything_is_shredded_at_once(
    make_service: Any, open_peer: Any, tools: Any, master_key: Path
) -> None:
    service = make_service(**encrypted(master_key))
    peer = open_peer(service, "shared_memory")
    for owner in ("", "acme", "bert"):
        store(service, peer, tools, owner, 1)
    receipt = shredded(service, ALL)
    assert (receipt.block_count, len(receipt.shred.key_ids)) == (3, 3)
    assert opened_keys(service, master_key) == {}


def test_a_shred_is_refused_where_there_is_nothing_to_destroy_or_too_much_would_be(
    make_service: Any, open_peer: Any, tools: Any, master_key: Path
) -> None:
    plain = make_service()
    error = refusal(plain, of("acme"))
    assert (error.reason, error.code) == ("NOT_ENCRYPTED", grpc.StatusCode.FAILED_PRECONDITION)
    without = make_service(ssd={"enabled": False})
    assert refusal(without, ALL).reason == "NOT_ENCRYPTED"
    service = make_service(**encrypted(master_key))
    chain = store(service, open_peer(service, "shared_memory"), tools, "acme/search")
    for target in (
        of("acme/search"),
        pb.PurgeTarget(kind=pb.PURGE_KIND_NAMESPACE, namespace_id=bytes(range(32))),
        pb.PurgeTarget(
            kind=pb.PURGE_KIND_PREFIX, namespace_id=bytes(range(32)), block_hash=chain[0]
        ),
    ):
        assert refusal(service, target).reason == "MALFORMED_REQUEST"
    assert lookup(service, open_peer, chain) == 3
    assert opened_keys(service, master_key).keys() == {"acme"}


def test_only_operators_shred(
    make_service: Any, short_directory: Any, master_key: Path, tools: Any
) -> None:
    pki = Pki(short_directory() / "tls")
    service = make_service(security=pki.security.model_dump(), **encrypted(master_key))
    request = pb.PurgeBlocksRequest(target=ALL, shred=True)
    for role in EVERY_ROLE:
        with grpc.secure_channel(service.address, pki.role(role)) as channel:
            stub = control_pb2_grpc.ControlServiceStub(channel)
            if role is Role.OPERATOR:
                receipt = stub.PurgeBlocks(request, timeout=10).receipt
                assert receipt.shred.destruction == pb.KEY_DESTRUCTION_DURABLE
                continue
            with pytest.raises(grpc.RpcError) as caught:
                stub.PurgeBlocks(request, timeout=10)
            assert read_error(caught.value).reason == "ROLE_NOT_ALLOWED"


def test_starts_without_the_right_key_are_refused_and_another_is_taken_with_the_old_beside_it(
    make_service: Any, open_peer: Any, tools: Any, master_key: Path
) -> None:
    service = make_service(**encrypted(master_key))
    chain = store(service, open_peer(service, "shared_memory"), tools, "acme")
    service.stop()
    directory = service.settings.data_directory
    other = made_key(master_key.parent, 2)
    with pytest.raises(MasterKeyNeededError):
        make_service(directory)
    with pytest.raises(MasterKeyWrongError):
        make_service(directory, **encrypted(other))
    other.chmod(0o644)
    with pytest.raises(MasterKeyFileError):
        make_service(directory, **encrypted(other))
    other.chmod(0o600)
    service = make_service(directory, **encrypted(other, master_key))
    assert lookup(service, open_peer, chain) == 3
    service.stop()
    master_key.unlink()
    service = make_service(directory, **encrypted(other))
    assert lookup(service, open_peer, chain) == 3
    service.stop()
    service = make_service(directory, ssd=SIZES | {"give_up_encrypted": True})
    assert lookup(service, open_peer, chain) == 0
    assert service.stats().ssd_encryption.method == "off"


def test_the_commands_show_keys_and_what_became_of_them(
    make_service: Any, open_peer: Any, tools: Any, master_key: Path
) -> None:
    service = make_service(metrics_listen="127.0.0.1:0", **encrypted(master_key))
    peer = open_peer(service, "shared_memory")
    store(service, peer, tools, "acme", 2)
    store(service, peer, tools, "", 1)
    key_id = opened_keys(service, master_key)["acme"].key_id.hex()

    def ran(command: str, *arguments: str) -> Any:
        return CliRunner().invoke(app, [command, "--address", service.address, *arguments])

    shown = " ".join(ran("stats").stdout.replace("│", "").split())
    assert "3 blocks encrypted under 2 data keys, 0 in clear" in shown
    for arguments in (
        ["--tenant", "acme", "--project", "search", "--shred"],
        ["--request", "r", "--shred"],
        ["--shred"],
    ):
        outcome = ran("purge", *arguments)
        assert outcome.exit_code == 2, arguments
    assert "would be destroyed" in ran("purge", "--tenant", "acme", "--shred", "--dry-run").stdout
    shown = ran("purge", "--tenant", "acme", "--shred").stdout
    assert "destroyed durably" in shown
    assert key_id in shown
    said = json.loads(ran("purge", "--everything", "--shred", "--json").stdout)
    assert (len(said["shred"]["key_ids"]), said["shred"]["destruction"]) == (1, "durable")
    assert json.loads(ran("purge", "--everything", "--json").stdout)["shred"] is None
    found = json.loads(ran("stats", "--json").stdout)["ssd_encryption"]
    assert (found["data_key_count"], found["destroyed_key_count"]) == (0, 2)
    page = urllib.request.urlopen(f"http://{service.server.metrics_listen}/metrics").read().decode()
    assert "kvtier_cache_destroyed_data_keys 2.0" in page
    assert 'kvtier_cache_ssd_blocks{bytes="clear"} 0.0' in page
