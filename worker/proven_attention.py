"""Which way of attending a model gets: the fastest of its device that passes the self-test.

Invariant: what is returned has passed with this very model; a way that has not is told in the log.
Runs once, on the starting thread.
"""

import logging
from typing import Any

from worker.attention.choose import AttentionChoice, attention_choices
from worker.attention.latents import has_latents
from worker.attention.survey import survey
from worker.errors import ArchitectureRefusedError
from worker.layout import BlockLayout
from worker.self_test import run_self_test

__all__ = ["prove_attention"]

log = logging.getLogger(__name__)


def prove_attention(
    model: Any, layout: BlockLayout, context_tokens: int, *, deterministic: bool = False
) -> tuple[AttentionChoice, float]:
    """The way, and the difference of logits that `run_self_test` saw with it. `deterministic`: of
    those whose sums are the same in any pages.

    Raises as `run_self_test` does for the last of the device's ways.
    """
    choices = attention_choices(model.device)
    if deterministic:
        # The last, which gathers, is always one of them.
        choices = tuple(choice for choice in choices if not choice.by_place)
    if any(choice.few_rows for choice in choices) and not _has_few_rows(model):
        choices = tuple(choice for choice in choices if not choice.few_rows)
    if has_latents(survey(model), layout):
        # What is done for latents has another shape in each step.
        plain = [choice for choice in choices if not choice.records]
        choices = tuple(way for choice in plain for way in (choice.absorbing(), choice))
    *faster, last = choices
    for choice in faster:
        try:
            return choice, run_self_test(model, layout, context_tokens, choice)
        except ArchitectureRefusedError:
            raise
        except Exception as error:  # a kernel may fail to compile in many ways
            log.warning(
                "attention does not work this way with this model; trying the next",
                extra={"attention": choice.name, "problem": f"{type(error).__name__}: {error}"},
            )
    return last, run_self_test(model, layout, context_tokens, last)


def _has_few_rows(model: Any) -> bool:
    """Whether it has layers whose products our kernel computes."""
    # Imported only here: it brings a compiler.
    from worker.products.few_rows import takes

    return any(takes(module) for module in model.modules())
