"""A real worker in this process: gRPC, engine, journal, and a checkpoint of a few kilobytes; a real
cache service beside it for who asks."""

import json
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

from cache_service.server import CacheServer
from cache_service.settings import CacheSettings
from kvtier.settings import load
from kvtier.v1 import inference_pb2_grpc
from worker.server import RunningWorker, start_worker
from worker.settings import WorkerSettings

CONTEXT_TOKENS = 1024
START, END = "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bytes as tokens, two layers: answers are noise, and quick."""
    directory = tmp_path_factory.mktemp("checkpoints") / "tiny"
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=258, special_tokens=[START, END], initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator([], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=END)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(directory)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=CONTEXT_TOKENS,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(8.0)
    model.save_pretrained(directory)
    return directory


@pytest.fixture
def save_adapter(tmp_path: Path) -> Callable[..., Path]:
    """Saves LoRA adapters for `checkpoint`: two layers of 32 wide with one KV head of 16."""

    def save(name: str, seed: int = 3) -> Path:
        directory = tmp_path / name
        directory.mkdir()
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["v_proj"]}
        (directory / "adapter_config.json").write_text(json.dumps(config))
        generator = torch.Generator().manual_seed(seed)
        prefix = "base_model.model.model.layers"
        tensors = {
            f"{prefix}.{layer}.self_attn.v_proj.lora_{side}.weight": torch.randn(
                shape, generator=generator
            )
            for layer in range(2)
            for side, shape in (("A", (2, 32)), ("B", (16, 2)))
        }
        save_file(tensors, directory / "adapter_model.safetensors")
        return directory

    return save


StartWorker = Callable[..., Awaitable[tuple[RunningWorker, Any]]]


@pytest.fixture
async def start(checkpoint: Path, tmp_path: Path) -> AsyncIterator[StartWorker]:
    """Starts workers with overrides as on the command line; drains them at the end."""
    async with AsyncExitStack() as parts:

        async def start_one(*overrides: str) -> tuple[RunningWorker, Any]:
            settings, _ = load(
                WorkerSettings,
                env_prefix="KVTIER_TEST_",
                overrides=(
                    f"model={checkpoint}",
                    "listen=127.0.0.1:0",
                    "security.development=true",
                    f"data_directory={tmp_path / 'data'}",
                    "tenants=acme,umbra",
                    "pool.page_bytes=16MiB",
                    "pool.block_tokens=16",
                    "threads=1",
                    "drain_seconds=5",
                    *overrides,
                ),
            )
            worker = await start_worker(settings)
            parts.push_async_callback(worker.drain)
            channel = grpc.aio.insecure_channel(worker.listen)
            parts.push_async_callback(channel.close)
            return worker, inference_pb2_grpc.InferenceServiceStub(channel)

        yield start_one


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of the scopes' secret: workers that share it name prompts alike."""
    path = tmp_path / "secret"
    path.write_bytes(bytes(range(32)))
    path.chmod(0o600)
    return path


StartCache = Callable[..., Awaitable[CacheServer]]


@pytest.fixture
async def start_cache() -> AsyncIterator[StartCache]:
    """Starts cache services, each with settings over the smallest; ask for it before `start`, so
    that workers end first."""
    async with AsyncExitStack() as parts:

        async def start_one(**settings: Any) -> CacheServer:
            # Sockets need a short path.
            directory = parts.enter_context(tempfile.TemporaryDirectory(prefix="kvt-"))
            smallest = {
                "listen": "127.0.0.1:0",
                "security": {"development": True},
                "data_directory": directory,
                "host": {"capacity_bytes": "32MiB"},
                "ssd": {"enabled": False},
            }
            server = CacheServer(CacheSettings.model_validate(smallest | settings))
            await server.start()
            parts.push_async_callback(server.stop)
            return server

        yield start_one
