"""Proof at load that pages give the plain model's logits, within the stated tolerance.

One random prompt of two and a half blocks is computed by the plain model (transformers' eager
attention, no cache) and by pages: in chunks, its end beside its own beginning as another request,
and again with every full block taken out as bytes and put back into other pages, its last ones one
by one, and three single tokens at once. A wrong mask, a state outside the cache or a mixed-up
layout shows as a difference. What lies past those tokens, windows and the context's end, is proved
by `worker.position_test` without computing it.

A model that chooses experts chooses others when two are as good and rounding decides, and a token
with other experts has other logits, in plain transformers too. So in half precision such a model is
held to the tolerance by its median row: whatever is wrong with the cache is wrong for every row
that looks at it.

Bound: eight blocks of tokens, four times `ROW_COUNT` and four, whatever the model's context. Pure
but for compute; runs on the starting thread.
"""

from collections.abc import Sequence
from typing import Any

import torch

from worker.attention.choose import AttentionChoice
from worker.attention.interface import IMPLEMENTATION
from worker.errors import SelfTestFailedError
from worker.kv_pages import KvPages, PageId
from worker.landing import PageBytes
from worker.layout import BlockLayout
from worker.model_runner import ModelRunner, Span
from worker.position_test import check_positions

__all__ = [
    "TOLERANCES",
    "fill_pages",
    "logit_difference",
    "page_contents",
    "plain_logits",
    "run_self_test",
]

TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference allowed, as a share of the largest logit. Wrong masks differ by about 1.
`docs/determinism.md` says what was measured and what follows."""

SINGLE_COUNT = 5
"""Tokens computed one by one; an odd number, for the median row of a model with experts."""

EXPERT_COUNTS = (
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "moe_num_experts",
)


def run_self_test(
    model: Any, layout: BlockLayout, context_tokens: int, attention: AttentionChoice | None = None
) -> float:
    """The largest difference of logits that was seen, as a share of the largest logit.

    Raises SelfTestFailedError, ArchitectureRefusedError; leaves `model` set to paged attention.
    `context_tokens` is how long requests may be, at least 1; `attention` as `ModelRunner` takes it.
    """
    difference = _check_logits(model, layout, context_tokens, attention)
    check_positions(model, context_tokens, TOLERANCES[layout.dtype])
    model.set_attn_implementation(IMPLEMENTATION)
    return difference


def _check_logits(
    model: Any, layout: BlockLayout, context_tokens: int, attention: AttentionChoice | None
) -> float:
    size = layout.block_tokens
    count = min(2 * size + size // 2, context_tokens)
    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(0, vocabulary, (count,), generator=generator).tolist()
    expected = plain_logits(model, prompt)

    def compare(what: str, got: torch.Tensor, right: torch.Tensor) -> float:
        difference = logit_difference(model, layout.dtype, got, right)
        _check(what, difference, TOLERANCES[layout.dtype])
        return difference

    kv = KvPages(layout, 6, model.device)
    runner = ModelRunner(model, kv, attention, context_tokens)
    pages, other = [PageId(0), PageId(1), PageId(2)], [PageId(5), PageId(4), PageId(3)]
    seen: list[float] = []
    cut = min(size, count // 2)
    if cut:
        head = runner.run([Span(prompt[:cut], 0, pages, cut)])
        seen.append(compare("first", head, expected[:cut]))
    tail = Span(prompt[cut:], cut, pages, count - cut)
    seen.append(compare("chunked", runner.run([tail]), expected[cut:]))
    # The same again beside another request, which is the prompt's beginning in other pages.
    both = runner.run([tail, Span(prompt[:size], 0, other, min(size, count))])
    wanted = torch.cat([expected[cut:], expected[:size]])
    seen.append(compare("neighbouring", both, wanted))

    full = (count - 1) // size
    fill_pages(kv, other[:full], page_contents(kv, pages[:full]))
    start, first_single = full * size, max(full * size, count - SINGLE_COUNT)
    if start < first_single:
        restored = runner.run(
            [Span(prompt[start:first_single], start, other, first_single - start)]
        )
        seen.append(compare("restored", restored, expected[start:first_single]))
    # One by one, as decoding has them, which are attended to in a way of their own.
    singles = [
        runner.run([Span(prompt[at : at + 1], at, other, 1)]) for at in range(first_single, count)
    ]
    seen.append(compare("single", torch.cat(singles), expected[first_single:]))
    # Three at once, as a batch has them: what is there already is computed again.
    ends = [(pages, count - 1), (other, count - 1), (pages, min(size, count) - 1)]
    together = runner.run([Span(prompt[at : at + 1], at, table, 1) for table, at in ends])
    seen.append(compare("batched", together, expected[[at for _, at in ends]]))
    if runner.decodes is not None and runner.decodes.problems:
        raise SelfTestFailedError(f"decode steps are not recorded: {runner.decodes.problems}")
    return max(seen)


def page_contents(kv: KvPages, pages: Sequence[PageId]) -> list[PageBytes]:
    """Copies of their bytes, as a store takes them out."""
    with kv.source(pages).lend(range(len(pages))) as contents:
        return [content.copy() for content in contents]


def fill_pages(kv: KvPages, pages: Sequence[PageId], contents: Sequence[PageBytes]) -> None:
    """Their bytes put in, as a load does it."""
    landing = kv.landing(pages)
    for index, content in enumerate(contents):
        (room,) = landing.room(index, 1)
        room[:] = content
        landing.push(index, [room])
    landing.settle(0, len(pages), lambda count, work: sum(map(work, range(count))))


def plain_logits(model: Any, prompt: list[int]) -> torch.Tensor:
    """`[tokens, vocabulary]`, float32. Leaves `model` set to eager attention."""
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        output = model(input_ids=torch.tensor([prompt], device=model.device), use_cache=False)
    logits: torch.Tensor = output.logits[0].float()
    return logits


def logit_difference(
    model: Any, dtype: torch.dtype, got: torch.Tensor, right: torch.Tensor
) -> float:
    """How far logits `[rows, vocabulary]` are from the right ones, as a share of the largest.

    It is that of the worst row; of the median row where `model` chooses experts in half precision.
    NaN when there is one.
    """
    scale = max(float(right.abs().max()), 1e-6)
    rows = (got - right).abs().amax(1) / scale
    if dtype is not torch.float32 and _chooses_experts(model) and not bool(rows.isnan().any()):
        return float(rows.median())
    return float(rows.max())


def _chooses_experts(model: Any) -> bool:
    config = model.config.get_text_config()
    return any((getattr(config, name, None) or 0) > 1 for name in EXPERT_COUNTS)


def _check(what: str, difference: float, tolerance: float) -> None:
    # Written so that NaN fails too.
    if not difference <= tolerance:
        raise SelfTestFailedError(
            f"{what} paged logits differ from the plain model's by {difference:.1e} of the "
            f"largest (at most {tolerance:.0e} is right): this model cannot be cached"
        )
