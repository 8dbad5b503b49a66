"""A worker that computes nothing, for `kvtier bench gateway` alone.

    python -m gateway.bench.scripted_worker

The `seed` of a request says what to do, in milliseconds: the first token after `seed // 1000`, each
later one after `seed % 1000`; without one, everything at once. Prints a line with its address;
ends with its standard input.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc

from kvtier.v1 import inference_pb2 as pb
from kvtier.v1 import inference_pb2_grpc, usage_pb2

__all__ = ["MODEL", "main"]

MODEL = "scripted"


class ScriptedWorker(inference_pb2_grpc.InferenceServiceServicer):
    async def Generate(
        self, request: pb.GenerateRequest, context: Any
    ) -> AsyncIterator[pb.GenerateResponse]:
        pauses = divmod(request.sampling.seed, 1000)
        yield pb.GenerateResponse(
            started=pb.GenerateStarted(request_id="scripted", model=MODEL, prompt_tokens=8)
        )
        for number in range(request.max_completion_tokens):
            if pauses[min(number, 1)]:
                await asyncio.sleep(pauses[min(number, 1)] / 1000)
            yield pb.GenerateResponse(delta=pb.GenerateDelta(text=" word", token_ids=[number]))
        yield pb.GenerateResponse(sample_end=pb.SampleEnd(finish_reason=pb.FINISH_REASON_LENGTH))
        tokens = usage_pb2.TokenUsage(
            prompt_tokens=8, miss_tokens=8, completion_tokens=request.max_completion_tokens
        )
        yield pb.GenerateResponse(usage=pb.GenerateUsage(request_id="scripted", tokens=tokens))

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        return pb.GetModelResponse(model=MODEL, context_tokens=4096, block_tokens=64)


async def serve() -> None:
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(ScriptedWorker(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"listen": f"127.0.0.1:{port}"}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)


def main() -> int:
    asyncio.run(serve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
