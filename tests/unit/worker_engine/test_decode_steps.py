"""Decode steps on tensors that stay: padded or not, they give what steps give."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.decoding import Decoding
from worker.attention.backend import Options, hidden_keys
from worker.attention.choose import AttentionChoice, attention_choices
from worker.attention.static_step import StaticStep
from worker.attention.step import AttentionStep
from worker.decode_steps import BATCHES, PlainCalls, recorder_for
from worker.kv_pages import KvPages, PageId
from worker.model_runner import ModelRunner, Span
from worker.self_test import run_self_test

CPU = torch.device("cpu")


class TabledBackend:
    """Attends to whole block tables by tensors alone, as a kernel does; single queries only."""

    name = "tables"

    def __init__(self, kv: KvPages) -> None:
        self._kv = kv

    def attend(
        self,
        step: AttentionStep,
        layer: int,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        options: Options,
    ) -> torch.Tensor:
        if any(span.query_count > 1 for span in step.spans):
            (gathering,) = (c for c in attention_choices(CPU) if c.name == "gather+sdpa")
            backend = gathering.make(self._kv)
            return backend.attend(step, layer, query, keys, values, options)
        (tables,) = step.sent("tables", _tables)
        k, v = (
            columns[layer].tiles[tables].flatten(2, 3).permute(0, 2, 1, 3, 4).flatten(2, 3)
            for columns in (self._kv.keys, self._kv.values)
        )
        group = query.shape[0] // k.shape[1]
        k, v = (x.repeat_interleave(group, 1) for x in (k, v))
        scores = torch.einsum("hnd,nhtd->nht", query, k) * options.scale
        key_at = torch.arange(k.shape[2])
        hidden = hidden_keys(step.positions[:, None], key_at[None], options.window)
        scores = scores.masked_fill(hidden[:, None], float("-inf"))
        v = v.masked_fill(hidden[:, None, :, None], 0.0)
        return torch.einsum("nht,nhtd->nhd", torch.softmax(scores, -1), v)


def _tables(step: AttentionStep) -> Any:
    width = step.table_pages or max(len(span.pages) for span in step.spans)
    tables = np.zeros((len(step.spans), width), np.int64)
    for row, span in zip(tables, step.spans, strict=True):
        row[: len(span.pages)] = span.pages
    return [tables]


TABLED = AttentionChoice("tables", "for tests", TabledBackend)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 9])
def test_a_recorded_step_gives_what_a_step_gives_whatever_its_sequences(
    tiny_loaded: Any, count: int
) -> None:
    decoding = Decoding(tiny_loaded, TABLED, 12, 40, seed=count)
    for turn in range(4):
        usual, recorded = decoding.both([(turn + n) % 12 for n in range(count)])
        assert recorded.shape == usual.shape
        torch.testing.assert_close(recorded, usual, atol=2e-4, rtol=1e-4)
    assert decoding.decodes.replayed_count == 4
    pages = [PageId(page) for page in range(decoding.kvs[0].page_count)]
    for page in pages:
        one, other = (torch.from_numpy(kv.source([page])[0]) for kv in decoding.kvs)
        torch.testing.assert_close(
            one.view(torch.float32), other.view(torch.float32), atol=1e-4, rtol=1e-4
        )


def test_a_way_whose_python_looks_at_the_spans_is_seen(tiny_loaded: Any) -> None:
    """That the test above can fail."""
    (gathering,) = (c for c in attention_choices(CPU) if c.name == "gather+sdpa")
    decoding = Decoding(tiny_loaded, gathering, 12, 40, seed=1)
    first, again = (decoding.both(which) for which in ([0, 1, 2], [3, 4, 5]))
    torch.testing.assert_close(*first, atol=2e-4, rtol=1e-4)
    assert not torch.allclose(*again, atol=2e-2)


def test_rows_without_a_sequence_touch_nobodys_page(tiny_loaded: Any) -> None:
    kv = KvPages(tiny_loaded.layout, 4, CPU, touched_count=4)
    runner = ModelRunner(tiny_loaded.model, kv, replace(TABLED, records=True), 32)
    runner.run([Span([5], 0, [PageId(n)], 1) for n in range(3)])
    assert runner.decodes is not None
    assert runner.decodes.replayed_count == 1
    untouched, padding = kv.source([PageId(3), kv.scratch_page])
    assert not untouched.any()
    assert padding.any()


@pytest.fixture
def recording(bench: Any) -> Any:
    """An engine over a model whose decode steps are recorded."""
    bench.loaded = replace(bench.loaded, attention=replace(TABLED, records=True))
    return bench


def test_an_engine_decodes_by_recorded_steps(recording: Any, memory_cache: Any) -> None:
    prompts = [list(range(3 + n, 14 + 3 * n)) for n in range(5)]
    for cache in (None, memory_cache, memory_cache):
        engine = recording.engine(cache, page_count=40)
        asked = [recording.request(f"r{n}", p, new=4 + 3 * n) for n, p in enumerate(prompts)]
        watchers = recording.run(engine, *asked)
        for n, (prompt, watcher) in enumerate(zip(prompts, watchers, strict=True)):
            assert watcher.tokens() == recording.plain_greedy(prompt, 4 + 3 * n)


def test_what_is_no_batch_of_single_tokens_is_computed_as_usual(tiny_loaded: Any) -> None:
    kv = KvPages(tiny_loaded.layout, 70, CPU, touched_count=70)
    runner = ModelRunner(tiny_loaded.model, kv, replace(TABLED, records=True), 16)
    runner.run([Span([5, 6], 0, [PageId(0)], 1), Span([5], 0, [PageId(1)], 1)])
    many = [Span([5], 0, [PageId(n)], 1) for n in range(BATCHES[-1] + 1)]
    assert len(runner.run(many)) == len(many)
    table = [PageId(0), PageId(1), PageId(2)]
    runner.run([Span(list(range(3, 19)), 0, table, 1)])
    runner.run([Span([5], 16, table, 1)])  # Past the context that it was told of.
    assert runner.decodes is not None
    assert runner.decodes.replayed_count == 0


class Refusing:
    def __init__(self) -> None:
        self.asked = 0

    def record(self, call: Callable[[], torch.Tensor]) -> Any:
        self.asked += 1
        raise RuntimeError("operation not permitted when stream is capturing")


def test_a_step_that_cannot_be_recorded_is_computed_as_usual_and_not_tried_again(
    tiny_loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Refusing()
    monkeypatch.setattr("worker.model_runner.recorder_for", lambda device: recorder)
    kv = KvPages(tiny_loaded.layout, 6, CPU, touched_count=6)
    runner = ModelRunner(tiny_loaded.model, kv, replace(TABLED, records=True), 32)
    plain = ModelRunner(tiny_loaded.model, kv, TABLED)
    span = Span([5], 0, [PageId(0)], 1)
    for _ in range(3):
        assert torch.equal(runner.run([span]), plain.run([span]))
    assert recorder.asked == 1
    assert runner.decodes is not None
    assert "not permitted" in runner.decodes.problems[1]


def test_the_self_test_takes_no_way_whose_steps_cannot_be_recorded(
    tiny_loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = replace(TABLED, records=True)
    model, layout = tiny_loaded.model, tiny_loaded.layout
    assert run_self_test(model, layout, 64, choice) < 1e-4
    monkeypatch.setattr("worker.model_runner.recorder_for", lambda device: Refusing())
    with pytest.raises(Exception, match="not permitted"):
        run_self_test(model, layout, 64, choice)


def test_what_follows_from_spans_stays_where_it_is_and_is_filled_anew() -> None:
    step = StaticStep(4, 8, CPU, table_pages=3, scratch_page=9)
    step.fill([(17, 1, (4, 5, 6)), (3, 1, (7,))], [40, 41])
    (first,) = step.sent("tables", _tables)
    assert first.tolist() == [[4, 5, 6], [7, 0, 0], [9, 0, 0], [9, 0, 0]]
    assert step.positions.tolist() == [17, 3, 0, 0]
    assert step.token_ids.tolist() == [40, 41, 0, 0]
    assert step.slot_pages.tolist() == [6, 7, 9, 9]
    assert step.slot_offsets.tolist() == [1, 3, 0, 0]
    step.fill([(8, 1, (1, 2))], [50])
    (again,) = step.sent("tables", _tables)
    assert again.data_ptr() == first.data_ptr()
    assert first.tolist() == [[1, 2, 0], [9, 0, 0], [9, 0, 0], [9, 0, 0]]


def test_a_processor_records_by_calling() -> None:
    assert isinstance(recorder_for(CPU), PlainCalls)
