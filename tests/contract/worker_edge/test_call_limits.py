"""What the worker's `limits.*` say is what its gate does."""

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from kvtier.errors import read_error
from kvtier.v1 import inference_pb2 as pb


@pytest.mark.parametrize("limit", ["calls_max", "calls_per_session_max"])
async def test_more_calls_than_the_setting_are_refused_and_health_is_not(start, limit: str) -> None:
    worker, stub = await start(f"limits.{limit}=1")
    held = stub.Generate(
        pb.GenerateRequest(
            tenant_id="acme",
            text="on and on",
            max_completion_tokens=900,
            ignore_end_of_sequence=True,
        )
    )
    await held.read()
    with pytest.raises(grpc.RpcError) as caught:
        await stub.GetModel(pb.GetModelRequest())
    refusal = read_error(caught.value)
    assert refusal.reason == "TOO_MANY_CALLS"
    assert refusal.metadata[limit] == "1"
    assert f"raise limits.{limit}" in refusal.message
    async with grpc.aio.insecure_channel(worker.listen) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    held.cancel()
