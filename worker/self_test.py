"""Proof at load that pages give the plain model's logits.

One random prompt of two and a half blocks is computed by the plain model (transformers' eager
attention, no cache) and by pages: in chunks, its end beside its own beginning as another request,
and again with every full block taken out as bytes and put back into other pages, its last token on
its own. A wrong mask, a state outside the cache or a mixed-up layout shows as a difference. What
lies past those tokens, windows and the context's end, is proved by `worker.position_test` without
computing it.

Bound: eight blocks of tokens, four times `ROW_COUNT` and one, whatever the model's context. Pure
but for compute; runs on the starting thread.
"""

import logging
from typing import Any

import torch

from worker.attention.choose import AttentionChoice, attention_choices
from worker.attention.interface import IMPLEMENTATION
from worker.attention.latents import has_latents
from worker.attention.survey import survey
from worker.errors import ArchitectureRefusedError, SelfTestFailedError
from worker.kv_pages import KvPages, PageId
from worker.layout import BlockLayout
from worker.model_runner import ModelRunner, Span
from worker.position_test import check_positions

__all__ = ["TOLERANCES", "prove_attention", "run_self_test"]

log = logging.getLogger(__name__)

TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference allowed, as a share of the largest logit. Wrong masks differ by about 1."""


def prove_attention(model: Any, layout: BlockLayout, context_tokens: int) -> AttentionChoice:
    """The fastest way of attending on this device that `model` passes the self-test with.

    Says in the log which ones it does not. Raises as `run_self_test` does for the last of them.
    """
    choices = attention_choices(model.device)
    if has_latents(survey(model), layout):
        choices = tuple(way for choice in choices for way in (choice.absorbing(), choice))
    *faster, last = choices
    for choice in faster:
        try:
            run_self_test(model, layout, context_tokens, choice)
        except ArchitectureRefusedError:
            raise
        except Exception as error:  # a kernel may fail to compile in many ways
            log.warning(
                "attention does not work this way with this model; trying the next",
                extra={"attention": choice.name, "problem": f"{type(error).__name__}: {error}"},
            )
        else:
            return choice
    run_self_test(model, layout, context_tokens, last)
    return last


def run_self_test(
    model: Any, layout: BlockLayout, context_tokens: int, attention: AttentionChoice | None = None
) -> None:
    """Raises SelfTestFailedError, ArchitectureRefusedError; leaves `model` set to paged attention.

    `context_tokens` is how long requests may be, at least 1; `attention` as `ModelRunner` takes it.
    """
    _check_logits(model, layout, context_tokens, attention)
    check_positions(model, context_tokens, TOLERANCES[layout.dtype])
    model.set_attn_implementation(IMPLEMENTATION)


def _check_logits(
    model: Any, layout: BlockLayout, context_tokens: int, attention: AttentionChoice | None
) -> None:
    size = layout.block_tokens
    count = min(2 * size + size // 2, context_tokens)
    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(0, vocabulary, (count,), generator=generator).tolist()
    expected = _plain_logits(model, prompt)

    kv = KvPages(layout, 6, model.device)
    runner = ModelRunner(model, kv, attention)
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
    start, last = full * size, count - 1
    if start < last:
        restored = runner.run([Span(prompt[start:last], start, other, last - start)])
        _compare("restored", restored, expected[start:last], layout.dtype)
    # Of one token, as decoding has them, which is attended to in a way of its own.
    single = runner.run([Span(prompt[last:], last, other, 1)])
    _compare("single", single, expected[last:], layout.dtype)


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
