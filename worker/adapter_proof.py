"""Proof at load that an adapter that is added at run time is the adapter merged into the weights.

For each adapter a prompt is computed by the plain model with it merged (transformers' eager
attention), and by pages with it added: in two pieces, the second one beside the base, another
adapter and itself in the same row. What the model computes without calling a layer, or calls with
rows of another order, shows as a difference, as a layer that was not called, or as a refusal.

The merged weights are beside the model's own while their logits are computed, for one adapter at a
time. Starting thread.
"""

from collections.abc import Mapping
from typing import Any

import torch

from worker.adapters import LoraAdapter, merge_adapter, targets_of
from worker.added_adapters import AdaptedRunner, AddedAdapters
from worker.attention.choose import AttentionChoice
from worker.errors import AdapterRefusedError
from worker.kv_pages import KvPages, PageId
from worker.layout import BlockLayout
from worker.model_runner import Span
from worker.self_test import TOLERANCES, logit_difference, plain_logits

__all__ = ["prove_adapters"]


def prove_adapters(
    model: Any,
    layout: BlockLayout,
    context_tokens: int,
    attention: AttentionChoice,
    adapters: Mapping[str, LoraAdapter],
    added: AddedAdapters,
) -> None:
    """Raises AdapterRefusedError for an adapter that cannot be added to this model."""
    size = layout.block_tokens
    count = min(size + size // 2 + 1, context_tokens)
    generator = torch.Generator().manual_seed(1)
    vocabulary = model.config.get_text_config().vocab_size
    prompt = torch.randint(0, vocabulary, (count,), generator=generator).tolist()
    right = {"": plain_logits(model, prompt)}
    for name, adapter in adapters.items():
        right[name] = _merged_logits(model, adapter, prompt)
    runner = AdaptedRunner(model, KvPages(layout, 8, model.device), attention, added)
    names = list(adapters)
    cut = min(size, count - 1)
    for place, name in enumerate(names):
        own, other, third, last = ([PageId(2 * n), PageId(2 * n + 1)] for n in range(4))
        neighbour = names[(place + 1) % len(names)]
        # Rows of one adapter do not lie together, and not every row's logits are wanted.
        spans = [
            Span(prompt[cut:], cut, own, count - cut, name),
            Span(prompt, 0, other, count),
            Span(prompt, 0, third, 1, neighbour),
            Span(prompt, 0, last, 1, name),
        ]
        expected = [right[name][cut:], right[""], right[neighbour][-1:], right[name][-1:]]
        if cut:
            head = runner.run([Span(prompt[:cut], 0, own, cut, name)])
            _check(model, layout, name, head, right[name][:cut])
        got = runner.run(spans)
        _check(model, layout, name, got, torch.cat(expected))
        if uncalled := added.uncalled(name):
            raise AdapterRefusedError(
                f"the model does not call {uncalled[0]} where it computes with it, so adapter"
                f" {name} cannot be added; merge it alone, with the setting adapter"
            )


def _merged_logits(model: Any, adapter: LoraAdapter, prompt: list[int]) -> torch.Tensor:
    modules: dict[str, Any] = targets_of(model, adapter)
    kept = {path: module.weight for path, module in modules.items()}
    merge_adapter(model, adapter)
    try:
        return plain_logits(model, prompt)
    finally:
        for path, module in modules.items():
            module.weight = kept[path]


def _check(
    model: Any, layout: BlockLayout, name: str, got: torch.Tensor, right: torch.Tensor
) -> None:
    tolerance = TOLERANCES[layout.dtype]
    difference = logit_difference(model, layout.dtype, got, right)
    if not difference <= tolerance:  # so that NaN fails too
        raise AdapterRefusedError(
            f"logits with adapter {name} added differ from those with it merged by"
            f" {difference:.1e} of the largest (at most {tolerance:.0e} is right)"
        )
