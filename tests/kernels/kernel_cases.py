"""Our Triton kernels against the formula in float64. Run by `test_triton_kernels.py` in a process
of its own, in the interpreter or on a device: which of them is settled when Triton is imported."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings

from tests.attention_cases import DEVICE, Case, attended, cases, expected
from tests.decoding import Decoding
from tests.tiny_models import COMMON, EXPERTS, LOGIT_TOLERANCE, WINDOW, plain_logits, save_tiny
from worker.attention import triton_backend
from worker.attention.choose import AttentionChoice
from worker.attention.triton_backend import TritonBackend
from worker.kv_pages import KvPages, PageId
from worker.model_loader import load_model
from worker.model_runner import ModelRunner, Span

MORE: dict[str, dict[str, Any]] = {
    "gemma2": {**WINDOW, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 2.0},
    "gpt_oss": {**WINDOW, **EXPERTS},
    "mimo_v2_flash": {
        **WINDOW,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
    },
}
TOLERANCES = {torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}


def agrees(case: Case) -> None:
    got, wanted = attended(case, TritonBackend), expected(case)
    assert got.shape == wanted.shape
    assert float((got.double() - wanted).abs().max()) <= TOLERANCES[case.dtype]


@given(case=cases())
@example(Case(spans=((40, 1), (0, 9), (23, 1), (6, 6)), group=3, sinks=True))
@settings(deadline=None, max_examples=8, suppress_health_check=list(HealthCheck))
def test_attention_over_pages_is_the_formula(case: Case) -> None:
    agrees(case)


@pytest.mark.parametrize("dim", [16, 24, 80, 96, 112])
def test_heads_that_are_no_power_of_two(dim: int) -> None:
    agrees(Case(spans=((21, 1), (5, 7)), dim=dim, value_dim=dim, block_tokens=16))


def test_latents_are_wider_than_their_values() -> None:
    spans = ((33, 1), (17, 1), (3, 2))
    agrees(Case(spans, key_heads=1, group=20, dim=576, value_dim=512, block_tokens=16))


@pytest.mark.parametrize("group", [1, 5, 16, 20])
def test_groups_that_fill_a_tile_and_do_not(group: int) -> None:
    agrees(Case(spans=((30, 1), (2, 9)), key_heads=2, group=group))


@pytest.mark.parametrize("page", [16, 64])
@pytest.mark.parametrize("window", [None, 40])
def test_long_contexts_are_cut_into_parts(page: int, window: int | None) -> None:
    case = Case(
        spans=((500, 1), (3, 1), (130, 1)),
        block_tokens=page,
        window=window,
        sinks=True,
        softcap=3.0,
    )
    agrees(case)


def test_parts_of_a_context_are_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    planned = []

    def watched(*asked: object) -> object:
        planned.append(triton_backend_plan(*asked))  # type: ignore[arg-type]
        return planned[-1]

    triton_backend_plan = triton_backend.plan_work
    monkeypatch.setattr(triton_backend, "plan_work", watched)
    agrees(Case(spans=((199, 1), (7, 3))))
    ((entries, _, _, sums),) = planned
    slots = entries[entries[:, 4] >= 0, 4]
    assert sums.tolist() == [[0, 0, len(slots)]]
    assert len(slots) > 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    if DEVICE.type == "cpu" and dtype == torch.bfloat16:
        pytest.skip("the interpreter multiplies the bits of bfloat16 as if they were numbers")
    agrees(Case(spans=((70, 1), (13, 9), (0, 20)), dtype=dtype, block_tokens=16, sinks=True))


def test_a_piece_of_more_than_one_tile() -> None:
    agrees(Case(spans=((20, 50), (0, 30)), group=3, block_tokens=16, window=33))


@pytest.mark.parametrize("kind", ["gemma2", "gpt_oss", "mimo_v2_flash"])
def test_models_attend_by_the_kernels(kind: str, tmp_path: Path) -> None:
    """Windows, softcap, sinks, values wider than keys and layers of unequal heads."""
    settings = {**COMMON, "num_hidden_layers": 2, "head_dim": 16, **MORE.get(kind, {})}
    plain = save_tiny(tmp_path, kind, settings)
    loaded = load_model(tmp_path, block_tokens=16, device=DEVICE.type)
    choice = AttentionChoice("triton", "", TritonBackend)
    runner = ModelRunner(loaded.model, KvPages(loaded.layout, 8, DEVICE), choice)
    tokens = torch.randint(3, 500, (60,), generator=torch.Generator().manual_seed(3)).tolist()
    wanted = plain_logits(plain, tokens)
    one, two = [PageId(n) for n in (5, 1, 4, 0)], [PageId(n) for n in (2, 3)]
    runner.run([Span(tokens[:49], 0, one, 1)])
    got = runner.run([Span(tokens[49:50], 49, one, 1), Span(tokens[:20], 0, two, 20)])
    last = runner.run([Span(tokens[50:], 50, one, 10)])
    expected_rows = torch.cat([wanted[49:50], wanted[:20], wanted[50:]])
    difference = (torch.cat([got, last]).cpu() - expected_rows).abs().max()
    assert float(difference / expected_rows.abs().max()) < LOGIT_TOLERANCE


@pytest.mark.parametrize("kind", ["llama", "gpt_oss"])
def test_recorded_steps_are_filled_anew(kind: str, tmp_path: Path) -> None:
    """Contexts of a page and of many, in more parts than some have pages; windows, sinks."""
    settings = {**COMMON, "num_hidden_layers": 2, "head_dim": 16, **MORE.get(kind, {})}
    save_tiny(tmp_path, kind, settings)
    loaded = load_model(tmp_path, block_tokens=16, device=DEVICE.type)
    choice = AttentionChoice("triton", "", TritonBackend)
    decoding = Decoding(loaded, choice, 4, 100, seed=5)
    for which in ([0, 1, 2], [3, 0, 1], [2], [1], [3, 2]):
        usual, recorded = decoding.both(which)
        difference = (usual - recorded).abs().max() / usual.abs().max()
        assert float(difference) < LOGIT_TOLERANCE
    assert decoding.decodes.replayed_count == 5


@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a CUDA device")
def test_graphs_are_replayed(tmp_path: Path) -> None:
    save_tiny(tmp_path, "llama", {**COMMON, "head_dim": 16})
    loaded = load_model(tmp_path, block_tokens=16, device="cuda")
    assert loaded.attention.name == "triton+graphs"
    kvs = [KvPages(loaded.layout, 8, DEVICE, touched_count=8) for _ in range(2)]
    plain = AttentionChoice("triton", "", TritonBackend)
    usual = ModelRunner(loaded.model, kvs[0], plain)
    graphs = ModelRunner(loaded.model, kvs[1], loaded.attention)
    tables = [[PageId(5), PageId(1)], [PageId(2), PageId(7)], [PageId(0), PageId(3)]]
    for at in range(20):
        spans = [Span([7 + at + n], at, table, 1) for n, table in enumerate(tables)]
        torch.testing.assert_close(graphs.run(spans), usual.run(spans), atol=1e-3, rtol=1e-3)
    assert graphs.decodes is not None
    assert (graphs.decodes.replayed_count, graphs.decodes.problems) == (20, {})
