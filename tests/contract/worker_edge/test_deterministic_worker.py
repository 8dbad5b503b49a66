"""A worker with `deterministic=true`, over real gRPC: what it says of itself, and what it hits."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import torch

from kvtier.v1 import describe_pb2, describe_pb2_grpc
from kvtier.v1 import inference_pb2 as pb
from tests.contract.worker_edge.starts import arguments, refuses

TEXT = "the same question, again and again; " * 5
"""180 tokens: two pieces of 64 and a rest."""
PIECE, BLOCK = 64, 16


@pytest.fixture(autouse=True)
def torch_as_it_was() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True


async def ask(stub, text: str) -> tuple[list, int]:
    """Tokens with their logprobs, and hit tokens."""
    request = pb.GenerateRequest(
        tenant_id="acme",
        text=text,
        max_completion_tokens=40,
        ignore_end_of_sequence=True,
        logprobs=5,
    )
    responses = [response async for response in stub.Generate(request)]
    said = [logprob for r in responses for logprob in r.delta.logprobs]
    return said, responses[-1].usage.tokens.hit_tokens


async def test_it_says_so_and_hits_whole_pieces(start_cache, start, secret, tmp_path):
    cache = await start_cache()
    mode = (
        "deterministic=true",
        "step_tokens=70",
        f"cache.address={cache.listen}",
        f"scope_secret_file={secret}",
    )
    worker, stub = await start(*mode)
    model = await stub.GetModel(pb.GetModelRequest())
    assert model.deterministic_piece_tokens == PIECE
    assert model.attention == "gather+sdpa"
    cold, hit = await ask(stub, TEXT)
    assert hit == 0
    warm, hit = await ask(stub, TEXT)
    assert hit == 2 * PIECE
    assert warm == cold
    async with grpc.aio.insecure_channel(worker.listen) as channel:
        describe = describe_pb2_grpc.DescribeServiceStub(channel)
        asked = describe_pb2.DescribePromptRequest(tenant_id="acme", text=TEXT)
        described = await describe.DescribePrompt(asked)
    assert len(described.block_hashes) // 32 == described.resident_count == 2 * PIECE // BLOCK
    _, hit = await ask(stub, TEXT[: PIECE + BLOCK] + "?")
    assert hit == PIECE
    _, hit = await ask(stub, TEXT[: PIECE - 1] + "?" * 20)
    assert hit == 0
    await worker.drain()

    _, stub = await start(*mode, f"data_directory={tmp_path / 'second'}")
    restored, hit = await ask(stub, TEXT)
    assert hit == 2 * PIECE
    assert restored == cold
    _, ordinary = await start(*mode, "deterministic=false", f"data_directory={tmp_path / 'third'}")
    assert (await ordinary.GetModel(pb.GetModelRequest())).deterministic_piece_tokens == 0
    _, hit = await ask(ordinary, TEXT)
    assert hit == 0  # blocks of a worker that is not deterministic are others


@pytest.mark.parametrize(
    ("more", "environment", "reason"),
    [
        ("cache.prefix_unit=deepseek", {}, "deterministic: hits end on the grid of step_tokens"),
        ("threads=1", {"OMP_DYNAMIC": "true"}, "DETERMINISM_REFUSED: OMP_DYNAMIC lets sums"),
    ],
)
def test_start_that_cannot_be_deterministic_is_refused(
    more: str,
    environment: dict[str, str],
    reason: str,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    argv = arguments(checkpoint, tmp_path / "data", "deterministic=true", more)
    assert reason in refuses(capsys, argv)
