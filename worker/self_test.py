"""Proof at load that pages give the plain model's logits.

One random prompt of two and a half blocks is computed by the plain model (transformers' eager
attention, no cache) and by pages: in chunks, its end beside its own beginning as another request,
and again with every full block taken out as bytes and put back into other pages. A wrong mask, a
state outside the cache or a mixed-up layout shows as a difference. What lies past those tokens,
windows and the context's end, is proved by `worker.position_test` without computing it.

Bound: eight blocks of tokens and four times `ROW_COUNT`, whatever the model's context. Pure but for
compute; runs on the starting thread.
"""

from typing import Any

import torch

from worker.attention import IMPLEMENTATION
from worker.errors import SelfTestFailedError
from worker.kv_pages import KvPages, PageId
from worker.layout import BlockLayout
from worker.model_runner import ModelRunner, Span
from worker.position_test import check_positions

__all__ = ["TOLERANCES", "run_self_test"]

TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference allowed, as a share of the largest logit. Wrong masks differ by about 1."""


def run_self_test(model: Any, layout: BlockLayout, context_tokens: int) -> None:
    """Raises SelfTestFailedError, ArchitectureRefusedError; leaves `model` set to paged attention.

    `context_tokens` is how long requests may be, at least 1.
    """
    _check_logits(model, layout, context_tokens)
    check_positions(model, context_tokens, TOLERANCES[layout.dtype])
    model.set_attn_implementation(IMPLEMENTATION)


def _check_logits(model: Any, layout: BlockLayout, context_tokens: int) -> None:
    size = layout.block_tokens
    count = min(2 * size + size // 2, context_tokens)
    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(0, vocabulary, (count,), generator=generator).tolist()
    expected = _plain_logits(model, prompt)

    kv = KvPages(layout, 6, model.device)
    runner = ModelRunner(model, kv)
    pages, other = [PageId(0), PageId(1), PageId(2)], [PageId(5), PageId(4), PageId(3)]
    cut = min(size, count // 2)
    if cut:
        head = runner.run([Span(prompt[:cut], 0, pages, cut)])
        _compare("first", head, expected[:cut], layout.dtype)
    tail = Span(prompt[cut:], cut, pages, count - cut)
    _compare("chunked", runner.run([tail]), expected[cut:], layout.dtype)
    # The same again beside another request, which is the prompt's beginning in other pages.
    both = runner.run([tail, Span(prompt[:size], 0, other, min(size, count))])
    wanted = torch.cat([expected[cut:], expected[:size]])
    _compare("neighbouring", both, wanted, layout.dtype)

    full = (count - 1) // size
    landed = kv.landing_bytes(other[:full])
    for source, target in zip(kv.export_bytes(pages[:full]), landed, strict=True):
        target[:] = source.copy()
    kv.import_bytes(other[:full], landed)
    start = full * size
    restored = runner.run([Span(prompt[start:], start, other, count - start)])
    _compare("restored", restored, expected[start:], layout.dtype)


def _plain_logits(model: Any, prompt: list[int]) -> torch.Tensor:
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        output = model(input_ids=torch.tensor([prompt], device=model.device), use_cache=False)
    logits: torch.Tensor = output.logits[0].float()
    return logits


def _compare(what: str, got: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    scale = max(float(expected.abs().max()), 1e-6)
    difference = float((got - expected).abs().max()) / scale
    # Written so that NaN fails too.
    if not difference <= TOLERANCES[dtype]:
        raise SelfTestFailedError(
            f"{what} paged logits differ from the plain model's by {difference:.1e} of the "
            f"largest (at most {TOLERANCES[dtype]:.0e} is right): this model cannot be cached"
        )
