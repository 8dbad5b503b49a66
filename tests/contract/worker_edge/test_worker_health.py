"""What an orchestrator and `grpcurl` ask of a worker: health and reflection."""

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

SERVICE = "kvtier.v1.InferenceService"


async def test_a_worker_says_that_it_serves_and_describes_its_service(start):
    worker, _ = await start()
    async with grpc.aio.insecure_channel(worker.listen) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", SERVICE):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        questions = (
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
        )
        answers = reflection.ServerReflectionInfo(iter(questions))
        names, described = [answer async for answer in answers]
    assert SERVICE in {each.name for each in names.list_services_response.service}
    assert described.file_descriptor_response.file_descriptor_proto
