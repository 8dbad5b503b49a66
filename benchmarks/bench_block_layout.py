"""Which order of a block's elements is fastest where pages are gathered, and where they are not?

    token   layer by layer, keys then values: [tokens, heads, dim]
    head    layer by layer, keys then values: [heads, tokens, dim]
    shard   all layers of a head, then the next head: each [tokens, dim]

All layers of a pool of pages are worked through as attention does: `gather` copies a context's keys
and values out of pages that lie anywhere; `decode` gathers them and attends with one query;
`decode_pages` attends to the pages where they lie; `prompt` attends with a piece of a prompt after
a gather; `scatter` writes such a piece into pages. Layouts take turns, so that a busy moment hits
each of them. Milliseconds for all layers: the median and the least of the rounds.

    python benchmarks/bench_block_layout.py [--context 4096] [--rounds 15] [--json]
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

LAYOUTS = ("token", "head", "shard")
BLOCK_TOKENS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--context", type=int, default=4096, help="tokens; whole blocks")
    parser.add_argument("--piece", type=int, default=512, help="tokens of a prompt's piece")
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--heads", type=int, default=2, help="of keys and values")
    parser.add_argument("--group", type=int, default=3, help="query heads for each of them")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    works = {layout: Work(layout, arguments).works() for layout in LAYOUTS}
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in LAYOUTS}
    for number in range(arguments.rounds + 2):
        for layout in LAYOUTS:
            for name, work in works[layout].items():
                began = time.perf_counter()
                work()
                taken = time.perf_counter() - began
                if number >= 2:  # the first rounds touch memory
                    seconds[layout].setdefault(name, []).append(taken)
    report(arguments, seconds)


class Work:
    """One layout's pool and what is done with it."""

    def __init__(self, layout: str, a: argparse.Namespace) -> None:
        self.layout, self.layers, self.heads, self.dim = layout, a.layers, a.heads, a.dim
        self.count = a.context // BLOCK_TOKENS
        pages = 2 * self.count
        self.elements = 2 * a.layers * a.heads * BLOCK_TOKENS * a.dim
        self.pool = torch.zeros(pages, self.elements)
        generator = torch.Generator().manual_seed(0)
        self.pages = torch.randperm(pages, generator=generator)[: self.count]
        size = self.count * BLOCK_TOKENS * a.heads * a.dim
        self.room = [torch.zeros(size), torch.zeros(size)]
        self.one = torch.randn(1, a.heads * a.group, 1, a.dim)
        self.queries = torch.randn(1, a.heads * a.group, a.piece, a.dim)
        self.fresh = torch.randn(a.heads, a.piece, a.dim)
        at = torch.arange(a.piece)
        self.slots = (self.pages[at // BLOCK_TOKENS], at % BLOCK_TOKENS)
        hidden = (
            torch.arange(a.context)[None] > torch.arange(a.context - a.piece, a.context)[:, None]
        )
        self.mask = torch.zeros(a.piece, a.context).masked_fill_(hidden, float("-inf"))

    def works(self) -> dict[str, Callable[[], None]]:
        return {
            "gather": lambda: self.each_layer(self.gathered),
            "decode": lambda: self.each_layer(self.decode),
            "decode_pages": lambda: self.each_layer(self.decode_pages),
            "prompt": lambda: self.each_layer(self.prompt),
            "scatter": lambda: self.each_layer(self.scatter),
        }

    def each_layer(self, work: Callable[[int], object]) -> None:
        for layer in range(self.layers):
            work(layer)

    def paged(self, layer: int, which: int) -> torch.Tensor:
        """`[pages, heads, tokens, dim]`; `which` is 0 for keys, 1 for values."""
        tile = BLOCK_TOKENS * self.dim
        if self.layout == "shard":
            head, token = 2 * self.layers * tile, self.dim
            first = (2 * layer + which) * tile
        else:
            first = (2 * layer + which) * tile * self.heads
            head, token = tile, self.dim
            if self.layout == "token":
                head, token = self.dim, self.dim * self.heads
        shape = (len(self.pool), self.heads, BLOCK_TOKENS, self.dim)
        return self.pool.as_strided(shape, (self.elements, head, token, 1), first)

    def gathered(self, layer: int) -> list[torch.Tensor]:
        """Keys and values, `[1, heads, context, dim]`."""
        return [self.gather(self.paged(layer, which), self.room[which]) for which in (0, 1)]

    def gather(self, paged: torch.Tensor, room: torch.Tensor) -> torch.Tensor:
        tokens = self.count * BLOCK_TOKENS
        if self.layout == "token":
            rows = paged.transpose(1, 2).flatten(1)
            torch.index_select(rows, 0, self.pages, out=room.view(self.count, -1))
            return room.view(1, tokens, self.heads, self.dim).transpose(1, 2)
        for head, out in enumerate(room.view(self.heads, self.count, -1)):
            torch.index_select(paged[:, head].flatten(1), 0, self.pages, out=out)
        return room.view(1, self.heads, tokens, self.dim)

    def decode(self, layer: int) -> None:
        keys, values = self.gathered(layer)
        query = self.one.view(1, self.heads, -1, self.dim)
        F.scaled_dot_product_attention(query, keys, values)

    def decode_pages(self, layer: int) -> None:
        query = self.one.view(1, self.heads, -1, self.dim).expand(self.count, -1, -1, -1)
        parts, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, self.paged(layer, 0)[: self.count], self.paged(layer, 1)[: self.count]
        )
        (parts * torch.softmax(sums, 0)[..., None]).sum(0)

    def prompt(self, layer: int) -> None:
        if layer < 2:  # the others are like them, and it is long
            keys, values = self.gathered(layer)
            F.scaled_dot_product_attention(
                self.queries, keys, values, attn_mask=self.mask, enable_gqa=True
            )

    def scatter(self, layer: int) -> None:
        for which in (0, 1):
            self.paged(layer, which).transpose(1, 2)[self.slots] = self.fresh.transpose(0, 1)


def report(arguments: argparse.Namespace, seconds: dict[str, dict[str, list[float]]]) -> None:
    rows = [
        {
            "layout": layout,
            "work": name,
            "median_ms": round(statistics.median(taken) * 1e3, 2),
            "least_ms": round(min(taken) * 1e3, 2),
        }
        for name in seconds[LAYOUTS[0]]
        for layout in LAYOUTS
        for taken in [seconds[layout][name]]
    ]
    if arguments.json:
        settings = {name: str(value) for name, value in vars(arguments).items()}
        machine = {"machine": platform.platform(), "torch": torch.__version__}
        print(json.dumps({**machine, "settings": settings, "results": rows}))
        return
    for row in rows:
        print("{work:<14}{layout:<8}median {median_ms:8.2f}   least {least_ms:8.2f}".format(**row))


if __name__ == "__main__":
    main()
