"""Linear layers whose products of a few rows go by a kernel of our own.

    FewRows.during(rows)   while a forward of ours runs, its linear layers multiply by the kernel;
                           before and after it the model is as it was

Of float32 layers on a processor, as torch has them; all others, and calls with more rows, are
torch's. Why so: docs/adr/0047-products-of-a-few-rows.md. The thread that computes.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from worker.attention.openmp import Parallel, parallel
from worker.products.few_rows_kernel import (
    ARGUMENTS,
    BIAS,
    INPUT,
    LINE_FLOATS,
    OUTPUT,
    ROW_COUNT,
    WEIGHTS,
    product_kernel,
)

__all__ = ["ROWS_MAX", "FewRows", "takes"]

log = logging.getLogger(__name__)

ROWS_MAX = 16
"""From more rows on torch is as fast."""

RUN_BYTES = 64 * 1024
"""Of weights that a thread takes at once."""


class FewRows:
    """Those of `model` that the kernel takes."""

    def __init__(self, model: nn.Module) -> None:
        found = parallel()
        assert found is not None, "torch has no threads for us"
        kernel = _compiled()
        self._layers = [
            (module.__dict__, _Product(module, kernel, found))
            for module in model.modules()
            if takes(module)
        ]

    @contextlib.contextmanager
    def during(self, rows: int) -> Iterator[None]:
        """Of a forward over so many rows."""
        if not 1 < rows <= ROWS_MAX:
            yield
            return
        try:
            for own, product in self._layers:
                # Found before the class's method. What else a call of the layer does, it does.
                own["forward"] = product
            yield
        finally:
            for own, _ in self._layers:
                own.pop("forward", None)


def takes(module: nn.Module) -> bool:
    """Whether it is a linear layer as torch computes them, of a size and kind for the kernel."""
    if type(module).forward is not nn.Linear.forward or "forward" in module.__dict__:
        return False
    assert isinstance(module, nn.Linear)
    weight, bias = module.weight, module.bias
    tensors = (weight,) if bias is None else (weight, bias)
    return (
        type(weight) is nn.Parameter
        and module.in_features % LINE_FLOATS == 0
        and all(_plain(tensor) for tensor in tensors)
    )


class _Product:
    """What a layer's `forward` is for the while."""

    __slots__ = (
        "_address",
        "_arguments",
        "_forward",
        "_kernel",
        "_next",
        "_parallel",
        "_run_count",
        "_tensors",
    )

    def __init__(self, layer: nn.Module, kernel: int, parallel: Parallel) -> None:
        assert isinstance(layer, nn.Linear)
        self._forward: Callable[[torch.Tensor], torch.Tensor] = layer.forward
        self._kernel, self._parallel = kernel, parallel
        self._tensors: Any = layer._parameters
        self._next = np.zeros(1, dtype=np.int64)
        self._arguments = np.zeros(len(ARGUMENTS), dtype=np.int64)
        self._address: int = self._arguments.ctypes.data
        outputs, inputs = layer.out_features, layer.in_features
        run = max(1, RUN_BYTES // (inputs * layer.weight.element_size()))
        self._run_count = -(-outputs // run)
        fixed = {
            "next_run": self._next.ctypes.data,
            "run_count": self._run_count,
            "run_outputs": run,
            "output_count": outputs,
            "input_count": inputs,
        }
        self._arguments[:] = [fixed.get(name, 0) for name in ARGUMENTS]

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        weight, bias = self._tensors["weight"], self._tensors["bias"]
        outputs, inputs = weight.shape
        rows = input.numel() // inputs
        fits = input.shape[-1] == inputs and input.dtype is torch.float32
        if not fits or not 1 < rows <= ROWS_MAX:
            return self._forward(input)
        if not input.is_contiguous():
            input = input.contiguous()
        output = input.new_empty((*input.shape[:-1], outputs))
        given = self._arguments
        self._next[0] = 0
        given[ROW_COUNT] = rows
        given[WEIGHTS] = weight.data_ptr()
        given[BIAS] = 0 if bias is None else bias.data_ptr()
        given[INPUT] = input.data_ptr()
        given[OUTPUT] = output.data_ptr()
        threads = min(torch.get_num_threads(), self._run_count)
        self._parallel(self._kernel, self._address, threads)
        return output


def _plain(tensor: torch.Tensor) -> bool:
    return tensor.dtype is torch.float32 and tensor.device.type == "cpu" and tensor.is_contiguous()


def _compiled() -> int:
    """The kernel's address."""
    before = product_kernel.cache_info().misses
    began = time.perf_counter()
    kernel = product_kernel()
    if product_kernel.cache_info().misses > before:
        seconds = round(time.perf_counter() - began, 2)
        log.info("compiled a kernel of products", extra={"seconds": seconds})
    address: int = kernel.address
    return address
