"""Torch's kernel for sequences of many lengths, on a CUDA device."""

import pytest
import torch

from worker.attention.varlen_backend import varlen_kernel, varlen_problem

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_it_gives_what_the_formula_gives() -> None:
    assert varlen_problem(varlen_kernel(), torch.device("cuda")) == ""
