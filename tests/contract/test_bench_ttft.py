"""`kvtier bench ttft` says what it promises, under the names that it promises."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, LlamaConfig
from typer import Typer
from typer.testing import CliRunner

from kvtier.bench.errors import BenchError
from kvtier.blocks import MissReason, Tier
from worker.bench import ttft as command
from worker.bench import ttft_model, ttft_peers
from worker.bench.ttft_asking import Answer, fresh_engine
from worker.bench.ttft_decode import rate_of
from worker.bench.ttft_figures import (
    context_row,
    decode_rows,
    peer_decode,
    peer_results,
    with_shared,
)
from worker.bench.ttft_run import ContextRounds, DecodeRounds
from worker.bench.ttft_settings import TtftSettings
from worker.bench.ttft_tables import show
from worker.bench.ttft_tiers import Round, TierBench, ask_hit
from worker.engine import EngineSettings
from worker.model_loader import LoadedModel, load_model

RESULT_KEYS = {
    "context_tokens",
    "new_tokens",
    "cold_seconds",
    "transformers_seconds",
    "gpu_seconds",
    "host_seconds",
    "ssd_seconds",
    "cold_over_gpu",
    "cold_over_host",
    "cold_over_ssd",
}
DECODE_KEYS = {"requests", "tokens_per_second"}

ENGINE_THAT_IS_THERE = '''
"""Says that it is an engine, and answers as fast as lines travel."""

import json
import sys

print(json.dumps({"ready": json.loads(sys.argv[1])["dtype"] + " 1"}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    times = [0.25 * (1 + at) for at in range(asked["tokens"])]
    print(json.dumps({"came": [times for _ in asked["prompts"]]}), flush=True)
'''


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("ttft") / "tiny"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        eos_token_id=None,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> LoadedModel:
    return load_model(checkpoint)


def settings(checkpoint: Path, **other: Any) -> TtftSettings:
    sizes: dict[str, Any] = {
        "contexts": (200, 330),
        "rounds": 1,
        "decode_requests": (1, 3),
        "decode_context": 140,
        "decode_tokens": 4,
        "model": checkpoint,
        "directory": checkpoint.parent,
    }
    return TtftSettings(**(sizes | other))


@pytest.fixture(scope="module")
def result(checkpoint: Path) -> Any:
    return json.loads(json.dumps(command.run(settings(checkpoint))))


def test_a_small_run_has_every_key(result: Any) -> None:
    assert result["device"] == "cpu"
    assert result["model"] == "tiny"
    assert [row["context_tokens"] for row in result["results"]] == [200, 330]
    # 199 prompt tokens have three blocks, 329 have five, and all are hit but what follows them.
    assert [row["new_tokens"] for row in result["results"]] == [199 - 192, 329 - 320]
    for row in result["results"]:
        assert set(row) >= RESULT_KEYS
        assert all(row[key] > 0 for key in RESULT_KEYS)
        assert len(row["rounds"]) == row["same_first_token_count"] == 1
    assert [row["requests"] for row in result["decode"]] == [1, 3]
    for row in result["decode"]:
        assert set(row) >= DECODE_KEYS
        assert row["tokens_per_second"] > 0
        assert row["shared_tokens_per_second"] > 0


def test_engines_that_nobody_looked_for_are_named(result: Any) -> None:
    assert [row["name"] for row in result["peers"]] == [kind.name for kind in ttft_peers.ENGINES]
    for row in result["peers"]:
        assert (row["results"], row["decode"]) == ([], [])
        assert "--peers" in row["absent"]


def test_tables_have_a_line_for_everything(result: Any, capsys: Any) -> None:
    show(Console(width=100), result)
    text = capsys.readouterr().out
    for row in result["results"]:
        assert f"{row['context_tokens']} " in text
    assert "absent: vllm" in text
    assert "…" not in text


def test_engines_take_turns_where_they_are_installed(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """By an interpreter that has one of two: this one, which the constraints give no vllm."""
    peers = tmp_path / "worker" / "bench" / "peers"
    peers.mkdir(parents=True)
    own = Path(ttft_peers.__file__).parent / "peers" / "vllm_engine.py"
    (peers / "vllm_engine.py").write_text(own.read_text())
    (peers / "stopwatch.py").write_text(ENGINE_THAT_IS_THERE)
    for folder in (peers, peers.parent, peers.parent.parent):
        (folder / "__init__.py").touch()
    monkeypatch.setattr("worker.bench.ttft_peers.worker.__path__", [str(tmp_path / "worker")])
    kinds = (
        ttft_peers.EngineKind("stopwatch", "stopwatch"),
        ttft_peers.EngineKind("vllm", "vllm_engine"),
    )
    monkeypatch.setattr("worker.bench.ttft_peers.ENGINES", kinds)
    found = command.run(settings(checkpoint, contexts=(200,), peers=Path(sys.executable)))
    there, absent = found["peers"]
    assert (there["version"], there["absent"]) == ("float32 1", None)
    (row,) = there["results"]
    assert (row["cold_seconds"], row["gpu_seconds"], row["cold_over_gpu"]) == (0.25, 0.25, 1.0)
    assert row["its_cold_over_ours"] == 0.25 / found["results"][0]["cold_seconds"]
    # Four tokens of each, a quarter of a second apart; counted from the first on.
    assert [each["tokens_per_second"] for each in there["decode"]] == [4.0, 12.0]
    assert absent["absent"].startswith("not installed: ")
    show(Console(width=100), found)
    text = capsys.readouterr().out
    assert "stopwatch" in text
    assert "…" not in text


def test_a_driver_that_dies_is_an_error_with_its_last_words(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "__init__.py").touch()  # else another `worker`, that is installed, would be found
    monkeypatch.setattr("worker.bench.ttft_peers.worker.__path__", [str(tmp_path)])
    wanted = settings(checkpoint, peers=Path(sys.executable))
    with (
        pytest.raises(BenchError, match=r"vllm ended or hangs: .*No module named"),
        ttft_peers.engine_peers(wanted, checkpoint, "float32", str),
    ):
        pass


def test_what_cannot_be_measured_is_refused(checkpoint: Path) -> None:
    for other in (
        {"rounds": 0},
        {"contexts": ()},
        {"contexts": (2,)},
        {"decode_tokens": 1},
        {"decode_requests": (0, 1)},
        {"decode_context": 4},
    ):
        with pytest.raises(BenchError):
            settings(checkpoint, **other)
    with pytest.raises(BenchError, match="no block to hit"):
        command.run(settings(checkpoint, contexts=(65,)))
    with pytest.raises(BenchError, match="context is 512 tokens, not 513"):
        command.run(settings(checkpoint, contexts=(513,)))
    app = Typer()
    app.command()(command.ttft)
    for wrong in (["--contexts", "much"], ["--model-shape", "9b"], ["--contexts", ""]):
        outcome = CliRunner().invoke(app, [*wrong, "--directory", str(checkpoint.parent)])
        assert outcome.exit_code == 1
        assert outcome.stdout == ""


def test_a_time_of_another_tier_is_an_error(
    checkpoint: Path, loaded: LoadedModel, tmp_path: Path
) -> None:
    bench = TierBench(loaded, settings(checkpoint), 200, tmp_path)
    base, (warm, *_) = bench.prompts(0)
    with fresh_engine(loaded, EngineSettings(page_count=16), None) as engine:
        with pytest.raises(BenchError, match="not a hit of GPU alone"):
            ask_hit(engine, base, Tier.GPU, 192)
        assert ask_hit(engine, warm, Tier.GPU, 192).usage.miss_reason is MissReason.NONE
        with pytest.raises(BenchError, match="not a hit of HOST alone"):
            ask_hit(engine, warm, Tier.HOST, 192)


def test_rounds_have_prompts_of_their_own(
    checkpoint: Path, loaded: LoadedModel, tmp_path: Path
) -> None:
    bench = TierBench(loaded, settings(checkpoint), 200, tmp_path)
    base, warm = bench.prompts(1)
    assert bench.prompts(1) == (base, warm)
    assert bench.prompts(2)[0][:64] != base[:64]
    for prompt in warm:
        assert prompt[:192] == base[:192]
        assert len(prompt) == len(base) == 199
    assert len({tuple(prompt) for prompt in (base, *warm)}) == 4


def test_figures_are_medians_of_rounds_and_of_their_ratios() -> None:
    rounds = [
        Round(1.0, 2.0, 0.5, 1.0, 2.0, 7, True),
        Round(2.0, 4.0, 1.0, 1.0, 8.0, 7, False),
        Round(4.0, 3.0, 0.5, 1.5, 1.0, 7, True),
    ]
    rows = ContextRounds(401, rounds, [[(4.0, 1.0), (4.0, 2.0), (6.0, 1.0)]])
    row = context_row(rows)
    assert (row["cold_seconds"], row["transformers_seconds"]) == (3.0, 2.0)
    assert (row["cold_over_gpu"], row["cold_over_host"], row["cold_over_ssd"]) == (4.0, 2.0, 1.0)
    assert row["cold_over_transformers"] == 2.0
    assert row["prompt_tokens_per_second"]["gpu"] == 800.0
    assert row["same_first_token_count"] == 2
    (peer,) = peer_results(0, [rows])
    assert (peer["cold_seconds"], peer["cold_over_gpu"]) == (4.0, 4.0)
    assert (peer["its_cold_over_ours"], peer["its_gpu_over_ours"]) == (2.0, 2.0)


def test_decoding_is_counted_while_all_decode() -> None:
    early, late = Answer(0.0, came=[1.0, 2.0, 3.0, 4.0]), Answer(0.0, came=[2.0, 3.0, 4.0, 5.0])
    # After 2.0, when the last has its first token, until 4.0, when the first has its last.
    assert rate_of([early, late]) == 2.0
    assert rate_of([early]) == 1.0
    # A step a second, whose eight tokens come one after the other: eight tokens a second.
    steps = [Answer(0.0, came=[step + n / 16 for step in range(5)]) for n in range(8)]
    assert rate_of(steps) == 8.0
    # Where nobody has two tokens meanwhile.
    assert rate_of([Answer(0.0, came=[0.0, 2.0]), Answer(0.0, came=[1.0, 3.0])]) == 1.0
    rows = decode_rows((1, 8), 4096, [[10.0, 30.0], [20.0, 40.0], [10.0, 40.0]])
    assert [row["tokens_per_second"] for row in rows] == [10.0, 40.0]
    assert [row["over_first"] for row in rows] == [1.0, 3.0]
    with_shared(rows, [[10.0, 50.0], [20.0, 60.0], [10.0, 60.0]])
    assert [row["shared_tokens_per_second"] for row in rows] == [10.0, 60.0]
    assert [row["shared_over_first"] for row in rows] == [1.0, 5.0]
    decode = DecodeRounds([[10.0], [30.0], [20.0]], [[[20.0], [10.0], [20.0]]])
    (peer,) = peer_decode(0, (1,), 4096, decode)
    assert (peer["tokens_per_second"], peer["our_ratio_to_it"]) == (20.0, 1.0)


def test_a_random_model_has_the_shape_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = ttft_model.Shape(2, 32, 64, 4, 2, 128, 256, tied=True)
    monkeypatch.setitem(ttft_model.SHAPES, "toy", shape)
    wanted = TtftSettings(shape="toy", directory=tmp_path)
    told: list[str] = []
    directory = ttft_model.checkpoint_of(wanted, told.append)
    made = load_model(directory, dtype="bfloat16")
    assert (made.dtype, made.context_tokens, made.vocabulary_size) == ("bfloat16", 256, 128)
    assert [(each.key_heads, each.key_dim) for each in made.layout.layers] == [(2, 8)] * 2
    assert made.stop_token_ids == frozenset()
    # Made once, and whole: nothing else is left beside it.
    assert ttft_model.checkpoint_of(wanted, told.append) == directory
    assert len(told) == 1
    assert [path.name for path in directory.parent.iterdir()] == ["bench-toy"]


def test_quick_changes_only_what_was_not_given(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As `--quick` is, but within the tiny model's context.
    monkeypatch.setitem(command.QUICK, "decode_context", 400)
    app = Typer()
    app.command()(command.ttft)
    given = ["--model", str(checkpoint), "--directory", str(checkpoint.parent)]
    given += ["--contexts", "200", "--decode-requests", "", "--rounds", "1", "--new-tokens", "100"]
    outcome = CliRunner().invoke(app, [*given, "--quick", "--json"])
    assert outcome.exit_code == 0, outcome.output
    found = json.loads(outcome.stdout)
    used = found["settings"]
    assert used["contexts"] == [200]
    assert used["rounds"] == 1
    assert used["decode_context"] == 400
    assert found["decode"] == []
    # 199 tokens of the prompt, of which only the first block ends before the last hundred.
    assert [row["new_tokens"] for row in found["results"]] == [199 - 64]
