"""Which ways of attending there are on a device, the fastest first, and why one is or is not.

The first that the model's self-test passes with is used, and is told: in the log at start and in
`GetModel.attention`. Starting thread.
"""

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from worker.attention.backend import AttentionBackend
from worker.attention.dense import flash_with_sums, gives_sums
from worker.attention.openmp import parallel
from worker.attention.torch_backend import GatheringBackend, InPlaceBackend
from worker.attention.varlen_backend import (
    VarlenBackend,
    VarlenKernel,
    varlen_kernel,
    varlen_problem,
)
from worker.kv_pages import KvPages

__all__ = ["AttentionChoice", "attention_choices", "varlen_choices"]

PROBE_TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class AttentionChoice:
    """One way of attending."""

    name: str
    """`gather+sdpa`, `pages+sdpa`, `pages+numba`, `varlen`, `triton`; with `+rows` where
    products of a few rows are ours, `+latents` where those are absorbed, `+graphs` where decode
    steps are recorded."""
    why: str
    """In words, for whoever reads the log."""
    make: Callable[[KvPages], AttentionBackend]
    by_place: bool = True
    """Its sums depend on which pages a sequence has, or on what else is in the step."""
    absorbs: bool = False
    """Layers with latents do not expand their whole context at each step."""

    records: bool = False
    """Decode steps are recorded: its shapes follow from the size of a batch alone."""

    few_rows: bool = False
    """Products of a few rows with the weights are computed by a kernel of ours."""

    def multiplying(self) -> "AttentionChoice":
        why = f"{self.why}; so are products of a few rows with the weights"
        return replace(self, name=f"{self.name}+rows", why=why, few_rows=True)

    def recording(self) -> "AttentionChoice":
        return replace(self, name=f"{self.name}+graphs", records=True)

    def unrecorded(self) -> "AttentionChoice":
        return replace(self, name=self.name.removesuffix("+graphs"), records=False)

    def absorbing(self) -> "AttentionChoice":
        return replace(self, name=f"{self.name}+latents", absorbs=True)


def attention_choices(device: torch.device) -> tuple[AttentionChoice, ...]:
    """At least one."""
    gathering = AttentionChoice(
        GatheringBackend.name,
        "torch alone, which runs everywhere",
        GatheringBackend,
        by_place=False,
    )
    if device.type == "cpu":
        return (*_of_processors(), gathering)
    if device.type == "cuda":
        return (*_with_triton(), *varlen_choices(device, gathering, varlen_kernel()))
    return (gathering,)


def _of_processors() -> tuple[AttentionChoice, ...]:
    why = "torch's kernel for processors gives log-sum-exp, so single queries read pages"
    in_place = AttentionChoice(InPlaceBackend.name, why, InPlaceBackend)
    others = (in_place,) if _kernel_with_sums() else ()
    problem = _numba_problem()
    if problem:
        return tuple(replace(way, why=f"{why}; {problem}") for way in others)
    # Imported only here: it brings a compiler.
    from worker.attention.numba_backend import NumbaBackend

    why = "our kernel, compiled for this processor, reads pages for single queries in float32"
    choice = AttentionChoice(NumbaBackend.name, why, NumbaBackend)
    return (choice.multiplying(), choice, *others)


def _numba_problem() -> str:
    """Why there are no kernels of ours; empty where there are."""
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed, so our kernel is not there"
    if parallel() is None:
        return "torch has no OpenMP threads for us, so our kernel is not there"
    return ""


def _with_triton() -> tuple[AttentionChoice, ...]:
    if importlib.util.find_spec("triton") is None:
        return ()
    # Imported only here: a processor has no use for it, and it takes a second.
    from worker.attention.triton_backend import TritonBackend

    why = "our kernels read pages by block tables"
    choice = AttentionChoice(TritonBackend.name, why, TritonBackend)
    return (choice.recording(), choice)


def varlen_choices(
    device: torch.device, gathering: AttentionChoice, kernel: VarlenKernel | None
) -> tuple[AttentionChoice, ...]:
    """By `kernel`, where it does on the device what it should, and by `gathering`."""
    problem = varlen_problem(kernel, device)
    if problem:
        return (replace(gathering, why=f"torch alone; {problem}"),)
    why = "torch's kernel for sequences of many lengths does what it should"
    make = functools.partial(VarlenBackend, kernel=kernel)
    return (AttentionChoice(VarlenBackend.name, why, make), gathering)


def _kernel_with_sums() -> bool:
    """Whether torch's kernel is here, takes what we give it and gives what we need. It is one of
    torch's inner functions, which another version may change."""
    generator = torch.Generator().manual_seed(0)
    query, keys, values = (torch.randn(2, 1, 5, 8, generator=generator) for _ in range(3))
    if not gives_sums(query, values):
        return False
    mask = torch.zeros(2, 1, 1, 5).masked_fill_(torch.arange(5) > 2, float("-inf"))
    try:
        out, sums = flash_with_sums(query, keys, values, 0.5, mask=mask)
    except (RuntimeError, TypeError):
        return False
    scores = query @ keys.transpose(2, 3) * 0.5 + mask
    right = torch.softmax(scores, -1) @ values
    if out.shape != right.shape or sums.shape != right.shape[:-1]:
        return False
    worst = (out - right).abs().max(), (sums - scores.logsumexp(-1)).abs().max()
    return bool(max(worst) <= PROBE_TOLERANCE)
