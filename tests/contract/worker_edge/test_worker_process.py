"""`python -m worker` as its operator meets it: the ready line, bad starts, SIGTERM, kill -9."""

import asyncio
import json
import os
import signal
import socket
import sys

import grpc
import pytest

from journal.format import SegmentHead
from kvtier.errors import read_error
from kvtier.settings import load
from kvtier.v1 import inference_pb2 as pb
from kvtier.v1 import inference_pb2_grpc
from tests.contract.worker_edge.starts import arguments, refuses
from worker.__main__ import serve
from worker.settings import WorkerSettings
from worker.usage_event import UsageEnd
from worker.usage_journal import UsageJournal, UsageOutbox
from worker.usage_journal_format import USAGE_FORMAT


def test_a_directory_that_is_no_checkpoint_is_refused(capsys, tmp_path):
    line = refuses(capsys, arguments(tmp_path, tmp_path / "data"))
    assert "CHECKPOINT_INVALID" in line
    line = refuses(capsys, arguments(tmp_path / "nowhere", tmp_path / "data"))
    assert "CHECKPOINT_INVALID" in line


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "llama4_text", "attention_chunk_size": 64}, "chunked attention"),
        ({"model_type": "qwen3_next"}, "recurrent"),
        ({"model_type": "t5"}, "encoder-decoder"),
    ],
    ids=["llama4_text", "qwen3_next", "t5"],
)
def test_an_architecture_that_cannot_be_cached_is_refused(
    capsys, tmp_path, checkpoint, config, reason
):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for path in checkpoint.iterdir():
        (foreign / path.name).write_bytes(path.read_bytes())
    (foreign / "config.json").write_text(json.dumps(config))
    line = refuses(capsys, arguments(foreign, tmp_path / "data"))
    assert line.startswith("kvtier-worker: ARCHITECTURE_REFUSED: ")
    assert reason in line


def test_a_regime_of_rope_that_the_checkpoint_does_not_have_is_refused(
    capsys, tmp_path, checkpoint
):
    line = refuses(capsys, arguments(checkpoint, tmp_path / "data", "rope_regime=long"))
    assert line.startswith("kvtier-worker: ARCHITECTURE_REFUSED: ")
    assert "rope_regime" in line


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'"x"', b"\xff\x00", b'{"model_type": "nope"}'])
def test_a_checkpoint_whose_configuration_is_none_is_refused(capsys, tmp_path, checkpoint, raw):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in checkpoint.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / "config.json").write_bytes(raw)
    line = refuses(capsys, arguments(broken, tmp_path / "data"))
    assert line.startswith("kvtier-worker: CHECKPOINT_INVALID: ")


@pytest.mark.parametrize("raw", [b"", b"not tensors", b"\xff" * 64], ids=range(3))
def test_a_checkpoint_whose_weights_are_none_is_refused(capsys, tmp_path, checkpoint, raw):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in checkpoint.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / "model.safetensors").write_bytes(raw)
    line = refuses(capsys, arguments(broken, tmp_path / "data"))
    assert line.startswith("kvtier-worker: CHECKPOINT_INVALID: ")


def test_a_journal_of_a_newer_format_is_refused_and_left_alone(capsys, tmp_path, checkpoint):
    (tmp_path / "journal").mkdir()
    newer = USAGE_FORMAT.segment_path(tmp_path / "journal", 1)
    newer.write_bytes(USAGE_FORMAT.encode(1, SegmentHead(format=99)))
    before = newer.read_bytes()
    line = refuses(capsys, arguments(checkpoint, tmp_path))
    assert line.startswith("kvtier-worker: FORMAT_TOO_NEW: ")
    assert newer.read_bytes() == before


def test_a_checkpoint_without_a_tokenizer_is_refused(capsys, tmp_path, checkpoint):
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in checkpoint.iterdir():
        if "token" not in path.name:
            (bare / path.name).write_bytes(path.read_bytes())
    line = refuses(capsys, arguments(bare, tmp_path / "data"))
    assert "CHECKPOINT_INVALID" in line
    assert "tokenizer" in line


def test_a_port_in_use_is_refused(capsys, tmp_path, checkpoint):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        line = refuses(capsys, arguments(checkpoint, tmp_path, f"listen={address}"))
        assert "ADDRESS_IN_USE" in line
        assert address in line
        line = refuses(capsys, arguments(checkpoint, tmp_path, f"metrics_listen={address}"))
        assert "ADDRESS_IN_USE" in line
    # Nothing of the refused starts is left behind: the journal can be opened.
    UsageJournal(tmp_path / "journal").close()


def test_a_journal_that_another_worker_has_is_refused(capsys, tmp_path, checkpoint):
    journal = UsageJournal(tmp_path / "journal")
    assert "JOURNAL_LOCKED" in refuses(capsys, arguments(checkpoint, tmp_path))
    journal.close()


def test_a_data_directory_that_cannot_be_written_is_refused(capsys, tmp_path, checkpoint):
    (tmp_path / "file").write_text("")
    line = refuses(capsys, arguments(checkpoint, tmp_path / "file"))
    assert "data_directory" in line
    secret = tmp_path / "secret"
    secret.write_bytes(b"x" * 32)
    line = refuses(capsys, arguments(checkpoint, tmp_path / "file", f"scope_secret_file={secret}"))
    assert "JOURNAL_DIRECTORY" in line


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("tenants=", "tenants"),
        ("tenants=a,a", "twice"),
        ("tenants=a,*", "tenants"),
        ("tenants=a/", "tenants"),
        ("tenants=a/p/u/more", "tenants"),
        ("tenants=a/p,a/p", "twice"),
        ("tenants=a,a priority=0..1", "twice"),
        ("tenants=a priority=0..9", "tenants"),
        ("step_tokens=8", "step_tokens"),
        ("request_deadline_seconds=-1", "request_deadline_seconds"),
        ("pool.page_bytes=many", "pool.page_bytes"),
        ("listen=nowhere", "listen"),
        ("listen=127.0.0.1:99999", "listen"),
        ("drain_seconds=inf", "drain_seconds"),
        ("typo=1", "typo"),
        ("public_prefix_directory=/nonexistent", "public_prefix_directory"),
        ("organisation_prefix_directory=/nonexistent", "organisation_prefix_directory"),
        ("pool.page_bytes=1", "pool.page_bytes"),
    ],
)
def test_bad_settings_are_refused_with_their_key(capsys, tmp_path, checkpoint, override, word):
    assert word in refuses(capsys, arguments(checkpoint, tmp_path, override))


def test_a_short_scope_secret_is_refused(capsys, tmp_path, checkpoint):
    secret = tmp_path / "secret"
    secret.write_bytes(b"short")
    line = refuses(capsys, arguments(checkpoint, tmp_path, f"scope_secret_file={secret}"))
    assert "5 bytes" in line


class Process:
    """A real worker process and a stub to it."""

    def __init__(self, process: asyncio.subprocess.Process, ready: dict) -> None:
        self.process = process
        self.ready = ready
        self.channel = grpc.aio.insecure_channel(ready["listen"])
        self.stub = inference_pb2_grpc.InferenceServiceStub(self.channel)

    @staticmethod
    async def start(argv: list[str]) -> "Process":
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "worker", *argv, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        line = await process.stdout.readline()
        assert line, f"the worker ended with status {await process.wait()}"
        return Process(process, json.loads(line))

    async def end(self, sig: signal.Signals) -> int:
        self.process.send_signal(sig)
        status = await self.process.wait()
        await self.channel.close()
        return status


def ask(name: str, tokens: int) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        tenant_id="default",
        text="hello",
        max_completion_tokens=tokens,
        ignore_end_of_sequence=True,
        client_request_id=name,
    )


async def first_delta(call) -> None:
    async for response in call:
        if response.WhichOneof("event") == "delta":
            return


async def test_a_killed_worker_charges_nothing_for_what_it_left_open_and_sigterm_drains(
    tmp_path, checkpoint
):
    argv = arguments(checkpoint, tmp_path)
    first = await Process.start(argv)
    assert first.ready["ready"] is True
    assert first.ready["model"] == "tiny"
    done = [r async for r in first.stub.Generate(ask("done", 4))]
    assert done[-1].WhichOneof("event") == "usage"
    await first_delta(first.stub.Generate(ask("killed", 1000)))
    assert await first.end(signal.SIGKILL) == -signal.SIGKILL
    secret = (tmp_path / "scope_secret").read_bytes()
    assert len(secret) == 32
    assert os.stat(tmp_path / "scope_secret").st_mode & 0o077 == 0

    second = await Process.start(argv)
    running = second.stub.Generate(ask("running", 300))
    await first_delta(running)
    ending = asyncio.ensure_future(second.end(signal.SIGTERM))
    rest = [r async for r in running]
    assert rest[-1].WhichOneof("event") == "usage"
    assert await ending == 0
    assert (tmp_path / "scope_secret").read_bytes() == secret

    journal = UsageJournal(tmp_path / "journal")
    outbox = UsageOutbox(journal.directory, 0, lambda: journal.durable_sequence)
    events = [pending.event for pending in outbox.pending(100)]
    journal.close()
    ends = {e.request.client_request_id: e.end for e in events}
    assert len(events) == 3
    assert ends == {
        "done": UsageEnd.STOP if done[-2].sample_end.finish_reason == 1 else UsageEnd.LENGTH,
        "killed": UsageEnd.WORKER_LOST,
        "running": UsageEnd.LENGTH,
    }
    killed = next(e for e in events if e.end is UsageEnd.WORKER_LOST)
    assert killed.tokens.prompt_tokens == killed.tokens.completion_tokens == 0


async def test_a_worker_whose_engine_failed_ends_so_that_another_can_start(
    tmp_path, checkpoint, capsys, monkeypatch
):
    """It would refuse everything and look healthy."""
    argv = arguments(checkpoint, tmp_path)[1::2]
    settings, _ = load(WorkerSettings, env_prefix="KVTIER_TEST_", overrides=argv)
    serving = asyncio.create_task(serve(settings))
    out = ""
    while not out:
        assert not serving.done()
        await asyncio.sleep(0.01)
        out = capsys.readouterr().out
    monkeypatch.setattr("worker.step_loop.plan_pieces", lambda *_: 1 / 0)
    async with grpc.aio.insecure_channel(json.loads(out)["listen"]) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            [r async for r in stub.Generate(ask("unlucky", 4))]
    assert read_error(caught.value).reason == "ENGINE_FAILED"
    assert await asyncio.wait_for(serving, 30) == 3
    journal = UsageJournal(tmp_path / "journal")
    outbox = UsageOutbox(journal.directory, 0, lambda: journal.durable_sequence)
    (pending,) = outbox.pending(100)
    journal.close()
    assert (pending.event.end, pending.event.tokens.prompt_tokens) == (UsageEnd.ERROR, 0)
