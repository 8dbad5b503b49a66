"""Forwards recorded as CUDA graphs. Thin on purpose: what is recorded and when is decided in
`decode_steps.py`, which runs without a device. Engine's thread."""

from typing import Any

import torch

from worker.decode_steps import Call

__all__ = ["CudaGraphs"]

_cuda: Any = torch.cuda
"""Half of it has no types."""

WARM_UPS = 2
"""Calls before the one that is recorded: kernels are compiled, libraries take their memory."""


class CudaGraphs:
    """A `Recorder`; all graphs take their memory from one pool."""

    def __init__(self) -> None:
        self._pool: Any = None

    def record(self, call: Call) -> Call:
        stream = _cuda.Stream()
        stream.wait_stream(_cuda.current_stream())
        with _cuda.stream(stream):
            for _ in range(WARM_UPS):
                call()
        _cuda.current_stream().wait_stream(stream)
        graph = _cuda.CUDAGraph()
        if self._pool is None:
            self._pool = _cuda.graph_pool_handle()
        # Of this thread only: others copy blocks meanwhile.
        with _cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            out = call()

        def replay() -> torch.Tensor:
            graph.replay()
            return out

        return replay
