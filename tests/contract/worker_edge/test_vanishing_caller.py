"""A Generate caller whose process vanishes: one usage event, no page held, the worker goes on."""

import asyncio
import signal
import sys

import pytest

from kvtier.v1 import inference_pb2 as pb
from worker.usage_event import UsageEnd
from worker.usage_journal import UsageJournal, UsageOutbox

CALLER = """
import sys
import grpc
from kvtier.v1 import inference_pb2 as pb
from kvtier.v1 import inference_pb2_grpc
stub = inference_pb2_grpc.InferenceServiceStub(grpc.insecure_channel(sys.argv[1]))
request = pb.GenerateRequest(
    tenant_id="acme",
    text="hello " * 20,
    max_completion_tokens=800,
    sample_count=4,
    sampling=pb.SamplingParameters(temperature=1.0),
    ignore_end_of_sequence=True,
    client_request_id="caller",
    cache_mode=pb.CACHE_MODE_BYPASS,
)
for response in stub.Generate(request):
    print(response.WhichOneof("event"), flush=True)
"""


@pytest.mark.parametrize("seen", ["started", "delta"])
async def test_a_killed_caller_is_metered_once_and_its_pages_are_free(start, tmp_path, seen):
    worker, stub = await start()
    free = (await stub.GetModel(pb.GetModelRequest())).free_page_count
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CALLER, worker.listen, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    async for line in process.stdout:
        if line.decode().strip() == seen:
            break
    process.send_signal(signal.SIGKILL)
    await process.wait()
    for _ in range(500):
        if (await stub.GetModel(pb.GetModelRequest())).free_page_count == free:
            break
        await asyncio.sleep(0.02)
    assert (await stub.GetModel(pb.GetModelRequest())).free_page_count == free

    await worker.drain()
    journal = UsageJournal(tmp_path / "data" / "journal")
    assert journal.opening.lost_count == 0
    outbox = UsageOutbox(journal.directory, 0, lambda: journal.durable_sequence)
    (event,) = [pending.event for pending in outbox.pending(10)]
    journal.close()
    assert event.request.client_request_id == "caller"
    assert event.end is UsageEnd.CANCELLED
    assert event.tokens.prompt_tokens <= 120
    assert event.tokens.completion_tokens < 4 * 800
