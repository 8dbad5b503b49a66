"""OpenReceipt over gRPC: who asked a request can open its digests, and nobody else."""

from typing import Any

import grpc
import pytest

from kvtier.errors import read_error
from kvtier.prompt_proof import commitment
from kvtier.v1 import inference_pb2 as pb
from kvtier.v1 import receipt_opening_pb2, receipt_opening_pb2_grpc
from worker.usage_journal import UsageJournal, UsageOutbox


async def opened(address: str, *names: str) -> Any:
    """The salt, or why not."""
    fields = ("tenant_id", "project_id", "user_id", "request_id")
    request = receipt_opening_pb2.OpenReceiptRequest(**dict(zip(fields, names, strict=True)))
    async with grpc.aio.insecure_channel(address) as channel:
        stub = receipt_opening_pb2_grpc.ReceiptOpeningServiceStub(channel)
        try:
            return (await stub.OpenReceipt(request)).salt
        except grpc.aio.AioRpcError as error:
            found = read_error(error)
            return found.reason, found.code


async def test_only_the_names_that_asked_open_a_request(start: Any, tmp_path: Any) -> None:
    running, stub = await start()
    request = pb.GenerateRequest(
        tenant_id="acme", project_id="search", text="x" * 100, max_completion_tokens=1
    )
    (usage,) = [
        each.usage async for each in stub.Generate(request) if each.WhichOneof("event") == "usage"
    ]
    name = usage.request_id
    salt = await opened(running.listen, "acme", "search", "", name)
    others = [
        await opened(running.listen, *names)
        for names in (
            ("umbra", "search", "", name),
            ("acme", "", "", name),
            ("acme", "ads", "", name),
            ("acme", "search", "ann", name),
            ("acme", "search", "", name + "0"),
        )
    ]
    assert all(len(each) == 32 for each in (salt, *others))
    assert len({salt, *others}) == 6
    await running.drain()
    journal = UsageJournal(tmp_path / "data" / "journal")
    outbox = UsageOutbox(journal.directory, 0, lambda: journal.durable_sequence)
    (event,) = [pending.event for pending in outbox.pending(10)]
    journal.close()
    assert event.proof is not None
    assert event.proof.commitment == commitment(salt)
    assert [sum(run.blocks.values()) for run in event.proof.runs] == [7]


async def test_a_worker_with_the_same_secret_opens_others_requests(
    start: Any, secret: Any, tmp_path: Any
) -> None:
    one, _ = await start(f"scope_secret_file={secret}")
    two, _ = await start(f"scope_secret_file={secret}", f"data_directory={tmp_path / 'two'}")
    three, _ = await start(f"data_directory={tmp_path / 'three'}")
    names = ("acme", "", "", "r1")
    salts = [await opened(each.listen, *names) for each in (one, two, three)]
    assert salts[0] == salts[1] != salts[2]


@pytest.mark.parametrize(
    ("names", "reason", "code"),
    [
        (("nobody", "", "", "r1"), "TENANT_UNKNOWN", grpc.StatusCode.NOT_FOUND),
        (("", "", "", "r1"), "TENANT_UNKNOWN", grpc.StatusCode.NOT_FOUND),
        (("acme", "", "ann", "r1"), "INVALID_SCOPE", grpc.StatusCode.INVALID_ARGUMENT),
        (("acme", "", "", ""), "INVALID_REQUEST_ID", grpc.StatusCode.INVALID_ARGUMENT),
        (("acme", "", "", "r" * 1025), "INVALID_REQUEST_ID", grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_what_cannot_be_opened_is_refused(
    start: Any, names: tuple[str, ...], reason: str, code: grpc.StatusCode
) -> None:
    running, _ = await start()
    assert await opened(running.listen, *names) == (reason, code)
