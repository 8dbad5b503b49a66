"""What do products of a few rows cost by the kernel and by torch, and a call of torch's threads?

`read`: the demo model's weights summed by torch, as fast as memory is read here. `torch_N`,
`kernel_N`: all products of a forward over N rows. `call_us`: the kernel called with nothing to do,
50 microseconds after the call before: from a thread that has the only team of torch's threads, and
from one beside whose team there is another. All take turns within a round; medians, milliseconds.

    python benchmarks/bench_few_rows.py [--rows 1,2,4,8,16] [--rounds 7]
"""

import argparse
import json
import statistics
import threading
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from worker.attention.openmp import end_team, parallel
from worker.products.few_rows import FewRows
from worker.products.few_rows_kernel import ARGUMENTS, product_kernel

HIDDEN, INTERMEDIATE, VOCABULARY, LAYERS, KEYS = 384, 1152, 8192, 10, 128
SHAPES = (
    (HIDDEN, HIDDEN),
    (HIDDEN, KEYS),
    (HIDDEN, KEYS),
    (HIDDEN, HIDDEN),
    (HIDDEN, INTERMEDIATE),
    (HIDDEN, INTERMEDIATE),
    (INTERMEDIATE, HIDDEN),
) * LAYERS + ((HIDDEN, VOCABULARY),)
CALLS = 300
GAP_SECONDS = 50e-6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="1,2,4,8,16", help="with commas between")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(*shape, bias=False) for shape in SHAPES))
    few_rows = FewRows(model)
    memory = torch.ones(sum(x.numel() for x in model.parameters()) // 4096, 4096)
    works: dict[str, Callable[[], object]] = {"read": lambda: torch.mv(memory, torch.ones(4096))}
    for rows in map(int, arguments.rows.split(",")):
        given = {size: torch.randn(1, rows, size) for size in (HIDDEN, INTERMEDIATE)}
        works[f"torch_{rows}"] = lambda given=given: multiplied(model, given)
        if rows > 1:  # one row is torch's
            works[f"kernel_{rows}"] = lambda given=given, rows=rows: by_kernel(
                few_rows, model, given, rows
            )
    seconds: dict[str, list[float]] = {name: [] for name in works}
    with torch.inference_mode():
        for number in range(arguments.rounds + 1):
            for name, work in works.items():
                began = time.perf_counter()
                work()
                if number:  # the first round warms up
                    seconds[name].append(time.perf_counter() - began)
    found = {name: round(1e3 * statistics.median(each), 2) for name, each in seconds.items()}
    beside = in_thread(call_us)
    end_team()
    print(json.dumps({**found, "call_us": in_thread(call_us), "call_us_beside_a_team": beside}))


def multiplied(model: nn.Sequential, given: dict[int, torch.Tensor]) -> None:
    for layer in model:
        layer(given[layer.in_features])


def by_kernel(
    few_rows: FewRows, model: nn.Sequential, given: dict[int, torch.Tensor], rows: int
) -> None:
    with few_rows.during(rows):
        multiplied(model, given)


def call_us() -> float:
    found = parallel()
    assert found is not None
    kernel, next_run = product_kernel().address, np.zeros(1, dtype=np.int64)
    nothing = np.zeros(len(ARGUMENTS), dtype=np.int64)
    nothing[0] = next_run.ctypes.data
    taken = []
    for _ in range(CALLS):
        until = time.perf_counter() + GAP_SECONDS
        while time.perf_counter() < until:
            pass
        began = time.perf_counter()
        found(kernel, nothing.ctypes.data, torch.get_num_threads())
        taken.append(time.perf_counter() - began)
    return round(1e6 * statistics.median(taken), 1)


def in_thread(work: Callable[[], float]) -> float:
    """Of a thread of its own, which ends with its team."""
    found: list[float] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


if __name__ == "__main__":
    main()
