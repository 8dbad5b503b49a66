"""The cache service is killed with -9 in the middle of restores, billing too: each lease is
attested, lost, or in a gap, and a comparison finds nothing that it cannot explain."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from kvtier.keys import KEY_SCHEME_VERSION, pack_hashes
from kvtier.v1 import attestation_pb2 as pb
from kvtier.v1 import attestation_pb2_grpc, cache_pb2, cache_pb2_grpc, usage_pb2, usage_pb2_grpc
from worker.host_pages import HostPages

pytestmark = pytest.mark.slow

BLOCKS = 4
BLOCK_TOKENS = 64
BLOCK_BYTES = 256 * 1024
ROUNDS = 5


class Billing:
    """A billing process that is killed and started at the same address."""

    def __init__(self, directory: Path, *settings: str) -> None:
        self._directory = directory
        self._settings = settings
        self.address = "127.0.0.1:0"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "billing", "--set", "security.development=true"]
        settings = (f"data_directory={self._directory}", f"listen={self.address}")
        for setting in (*settings, *self._settings, "log.level=ERROR"):
            command += ["--set", setting]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.address = json.loads(self._process.stdout.readline())["listen"]

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def stop(self) -> None:
        self._process.terminate()
        self._process.communicate(timeout=30)
        assert self._process.returncode == 0


def event_of(request_id: str, began_ns: int, hit_blocks: int, leases: list[str]) -> Any:
    hit = hit_blocks * BLOCK_TOKENS
    miss = (BLOCKS - hit_blocks) * BLOCK_TOKENS + 1
    event = usage_pb2.UsageEvent(
        request_id=request_id,
        schema_version=1,
        tenant_id="acme",
        model="demo",
        end_reason=usage_pb2.END_REASON_STOP,
        tokens=usage_pb2.TokenUsage(
            prompt_tokens=hit + miss,
            hit_tokens=hit,
            hit_tokens_by_tier=usage_pb2.HitTokensByTier(host=hit),
            miss_tokens=miss,
            completion_tokens=1,
        ),
        leases=usage_pb2.LeaseIds(ids=leases),
    )
    event.start_time.FromNanoseconds(began_ns)
    event.end_time.FromNanoseconds(time.time_ns())
    return event


def hold(address: str, request_id: str, chain: list[Any]) -> str:
    """A lease on the whole chain that nobody gives back."""
    with grpc.insecure_channel(address) as channel:
        stub = cache_pb2_grpc.CacheServiceStub(channel)
        opened = stub.OpenSession(
            cache_pb2.OpenSessionRequest(
                key_scheme_version=KEY_SCHEME_VERSION,
                client_name="holder",
                namespace_id=bytes(range(32)),
                block_tokens=BLOCK_TOKENS,
                block_bytes=BLOCK_BYTES,
                transport=cache_pb2.TRANSPORT_STREAM,
            )
        )
        answer = stub.AcquireResident(
            cache_pb2.AcquireResidentRequest(
                session_id=opened.session_id,
                request_id=request_id,
                block_hashes=pack_hashes(chain),
            )
        )
    assert answer.match.matched_count == BLOCKS
    return str(answer.match.lease_id)


def test_every_lease_is_accounted_for_through_kills(
    directory: Path, start: Any, connect: Any, payloads: Any, tmp_path: Path
) -> None:
    chance, billing = random.Random(5), Billing(tmp_path / "billing")
    events, leases = [], []
    for round_ in range(ROUNDS):
        cache = start(
            f"billing.address={billing.address}",
            "billing.backoff_seconds_max=0.3",
            "node=cache-1",
            "ssd.enabled=false",
        )
        address = cache.ready()
        client = connect(address)
        chain = payloads.chain(round_ + 1, BLOCKS)
        client.store(f"store-{round_}", chain, payloads.pages(chain))
        for number in range(chance.randrange(3, 12)):
            request_id, began_ns = f"request-{round_}-{number}", time.time_ns()
            landing = HostPages(payloads.blank(BLOCKS))
            result = super(type(client), client).restore(request_id, chain, landing, 10.0)
            assert len(result.tiers) == BLOCKS
            leases += landing.leases
            events.append(event_of(request_id, began_ns, BLOCKS, list(landing.leases)))
            time.sleep(chance.choice([0.0, 0.0, 0.05, 0.3]))
        if round_ == 2:
            billing.kill()
            billing.start()
        if round_ < ROUNDS - 1:
            began_ns = time.time_ns()
            held = hold(address, f"held-{round_}", chain)
            leases.append(held)
            # Its begin is written by then, or not.
            time.sleep(0.5 * (round_ % 2))
            events.append(event_of(f"held-{round_}", began_ns, BLOCKS, [held]))
            cache.signal(signal.SIGKILL)
            cache.end()
            client.close()
            continue
        client.close()
        cache.signal(signal.SIGTERM)
        assert cache.end()[0] == 0
    with grpc.insecure_channel(billing.address) as channel:
        usage = usage_pb2_grpc.UsageServiceStub(channel)
        outcomes = usage.RecordUsage(usage_pb2.RecordUsageRequest(events=events)).outcomes
        assert {each.status for each in outcomes} == {usage_pb2.RECORD_STATUS_ACCEPTED}
        stub = attestation_pb2_grpc.AttestationServiceStub(channel)
        answers = list(stub.ReconcileUsage(pb.ReconcileUsageRequest()))
    billing.stop()
    summary = answers[-1].summary
    differences = [each for answer in answers for each in answer.differences]
    assert [each for each in differences if not each.explained] == []
    assert summary.request_count == len(events)
    in_gaps = [each for each in differences if each.kind == "ATTESTATION_IN_GAP"]
    assert summary.lease_count + len(in_gaps) == len(leases)
    lost = {each.request_id for each in differences if each.kind == "LEASE_LOST"}
    assert {"held-1", "held-3"} <= lost
    assert summary.lease_count > len(leases) / 2
