"""All single queries of a step over the pages where they lie: nothing is gathered.

A page is attended to on its own, with log-sum-exp, by the queries of one key head as rows; what
the pages of a sequence gave is then weighed by their sums. So a step takes its pages in any order:

    alone    pages of one sequence each, in runs of neighbours in the pool, one kernel call a run
    shared   pages that several sequences hold, once for all of them, one call for a run
    edges    pages of which a query sees a part only; the part is copied out, token by token, since
             unused slots may hold anything

Pages without enough neighbours for a run are copied out, so many at a time that they stay in the
processor's cache: a pool after long use is full of them.

Invariant: a `SingleQueries` is made of a step's spans and a window alone, and is used for its
layers one after the other. Engine's thread.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from worker.attention.backend import Options
from worker.attention.dense import flash_with_sums
from worker.attention.scratch import Scratch
from worker.attention.step import AttentionStep
from worker.paged_columns import PagedColumns

__all__ = ["SingleQueries", "single_queries"]

RUN_PAGES_MIN = 4
"""A kernel call costs about as much as copying so many pages out."""

COPIED_COST, GATHERED_COST = 1.9, 1.65
"""Of a page that is copied out here, and of one that a span gathers with all others, by the cost of
one in a run. Processor time of `pages+sdpa` and `gather+sdpa` on the demo model, pages in order and
anywhere."""
IN_PLACE_COST, SPAN_COST = 10.0, 8.0
"""In the same measure: of attending in place at all, and of each span that gathers, by the calls
that they take. Without them many short contexts would gather, one by one."""
COPIED_PAGES_MAX = 32
"""At a time: 2 MiB of keys and values in float32 of 2 heads of 64."""

Numbers = NDArray[np.int64]
_Unit = tuple[torch.Tensor, torch.Tensor]
"""Of some units, what they gave, `[units, key heads, group, dim]`, and their sums."""


@dataclass(frozen=True, slots=True)
class _Run:
    """Pages that are attended to by one call."""

    first: int
    """The first of neighbours, or -1: then `pages` are copied out."""
    count: int
    pages: torch.Tensor
    rows: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict)
    """What `PagedColumns.gather` takes for them, by how columns lie."""

    @property
    def cost(self) -> float:
        return self.count * (1.0 if self.first >= 0 else COPIED_COST)

    def read(self, columns: PagedColumns, which: int, scratch: Scratch) -> torch.Tensor:
        """`[count, heads, tokens, dim]`; `which` of the rooms of `scratch`."""
        if self.first >= 0:
            return columns.tiles[self.first : self.first + self.count].flatten(1, 2)
        name = (*columns.steps, columns.at.grains, columns.at.heads_per_grain)
        if name not in self.rows:
            self.rows[name] = columns.row_index(self.pages)
        copied = scratch.gather_rows(which, columns, self.rows[name])
        return copied.view(columns.heads, self.count, -1, columns.at.dim).transpose(0, 1)


@dataclass(frozen=True, slots=True)
class _Shared:
    """Pages that the same queries hold."""

    holders: torch.Tensor
    runs: tuple[_Run, ...]


@dataclass(frozen=True, slots=True)
class SingleQueries:
    """`count` queries; a unit is what one query gets of one page, or of all its shared ones."""

    count: int
    worth: bool
    """Whether it is faster than gathering every span's pages: a pool may lie too much in pieces."""
    query_rows: torch.Tensor
    """Their rows in the step."""
    alone: tuple[_Run, ...]
    alone_owners: tuple[torch.Tensor, ...]
    """For each run, whose each page is, `[pages]`, or `[1]` where all are one query's."""
    edges: torch.Tensor
    """Pages, `[edges, 1]`."""
    edge_owners: torch.Tensor
    edge_tokens: torch.Tensor
    """`[edges, longest part]`, as are the hidden: places in the page, of which what is behind the
    query's part is its last token again."""
    edge_hidden: torch.Tensor
    shared: tuple[_Shared, ...]
    foreign: torch.Tensor
    """`[queries, units]`: which unit is another query's."""

    def attend(
        self,
        query: torch.Tensor,
        keys: PagedColumns,
        values: PagedColumns,
        options: Options,
        scratch: Scratch,
    ) -> torch.Tensor:
        """`query` is the whole step's, `[heads, tokens, dim]`; returns `[count, heads, dim]`."""
        heads, _, dim = query.shape
        rows = query.transpose(0, 1)[self.query_rows]
        rows = rows.reshape(self.count, keys.heads, heads // keys.heads, dim)

        def to_run(run: _Run, own: torch.Tensor) -> _Unit:
            k, v = run.read(keys, 0, scratch), run.read(values, 1, scratch)
            return flash_with_sums(own.expand(run.count, -1, -1, -1), k, v, options.scale)

        units = [
            to_run(run, rows[owners])
            for run, owners in zip(self.alone, self.alone_owners, strict=True)
        ]
        if len(self.edges):
            units.append(self._of_edges(rows, keys, values, options.scale))
        units += [_of_shared(each, rows, to_run) for each in self.shared]
        outs, sums = zip(*units, strict=True)
        return self._weigh(torch.cat(outs), torch.cat(sums), options.sinks)

    def _of_edges(
        self, rows: torch.Tensor, keys: PagedColumns, values: PagedColumns, scale: float
    ) -> _Unit:
        own_k, own_v = (
            x.tiles.flatten(1, 2).transpose(1, 2)[self.edges, self.edge_tokens].transpose(1, 2)
            for x in (keys, values)
        )
        hidden = self.edge_hidden[:, None, None]
        mask = torch.zeros(hidden.shape, dtype=rows.dtype).masked_fill_(hidden, float("-inf"))
        return flash_with_sums(rows[self.edge_owners], own_k, own_v, scale, mask=mask)

    def _weigh(
        self, outs: torch.Tensor, sums: torch.Tensor, sinks: torch.Tensor | None
    ) -> torch.Tensor:
        """`outs` `[units, key heads, group, dim]`, `sums` without the last."""
        units, dim = len(outs), outs.shape[-1]
        shares = sums.reshape(units, -1).t()[:, None].masked_fill(self.foreign, float("-inf"))
        if sinks is not None:
            column = sinks.float().view(-1, 1, 1).expand(-1, self.count, 1)
            shares = torch.softmax(torch.cat([shares, column], -1), -1)[..., :-1]
        else:
            shares = torch.softmax(shares, -1)
        found = shares @ outs.reshape(units, -1, dim).transpose(0, 1).float()
        return found.transpose(0, 1).to(outs.dtype)


def _of_shared(
    shared: _Shared, rows: torch.Tensor, to_run: Callable[[_Run, torch.Tensor], _Unit]
) -> _Unit:
    """One unit for each holder: what all of the pages gave it."""
    _, key_heads, group, dim = rows.shape
    holders = len(shared.holders)
    # The queries of all holders as rows of their key head.
    query = rows[shared.holders].transpose(0, 1).reshape(1, key_heads, holders * group, dim)
    found = [to_run(run, query) for run in shared.runs]
    outs, sums = (torch.cat(parts) for parts in zip(*found, strict=True))
    whole = torch.logsumexp(sums, 0)
    out = (outs.float() * torch.exp(sums - whole)[..., None]).sum(0).to(outs.dtype)
    by_holder = (key_heads, holders, group)
    return (
        out.reshape(*by_holder, dim).transpose(0, 1),
        whole.reshape(by_holder).transpose(0, 1),
    )


def single_queries(step: AttentionStep, window: int | None) -> SingleQueries:
    """How the spans of one query in `step` attend, each to at most `window` tokens."""
    size = step.block_tokens
    spans = [span for span in step.spans if span.query_count == 1]
    whole: list[Numbers] = []
    edges: list[_Edge] = []
    for owner, span in enumerate(spans):
        oldest = 0 if window is None else max(0, span.context - window)
        whole.append(span.pages[-(-oldest // size) : span.context // size])
        edges += _edges(owner, span.pages, oldest, span.context, size)
    pages, owners, groups = _by_holders(whole)
    alone = _runs(step, pages)
    shared = tuple(_shared(step, holders, of_all) for holders, of_all in groups.items())
    runs = [*(run for _, run in alone), *(run for each in shared for run in each.runs)]
    in_place = IN_PLACE_COST + sum(run.cost for run in runs)
    gathered = SPAN_COST * len(spans) + GATHERED_COST * sum(len(each) for each in whole)
    edge_owners = [edge.owner for edge in edges]
    tokens, hidden = _parts(edges)
    unit_owners = np.concatenate(
        [*(owners[places] for places, _ in alone), edge_owners, *(holders for holders in groups)]
    )
    return SingleQueries(
        count=len(spans),
        worth=in_place <= gathered,
        query_rows=step.tensor(np.array([span.query_start for span in spans], dtype=np.int64)),
        alone=tuple(run for _, run in alone),
        alone_owners=tuple(step.tensor(_once(owners[places])) for places, _ in alone),
        edges=step.tensor(np.array([[edge.page] for edge in edges], dtype=np.int64)),
        edge_owners=step.tensor(np.array(edge_owners, dtype=np.int64)),
        edge_tokens=step.tensor(tokens),
        edge_hidden=torch.from_numpy(hidden).to(step.device),
        shared=shared,
        foreign=torch.from_numpy(unit_owners != np.arange(len(spans))[:, None]).to(step.device),
    )


@dataclass(frozen=True, slots=True)
class _Edge:
    """A page of which a query sees the tokens `[begin, end)`."""

    owner: int
    page: int
    begin: int
    end: int


def _edges(owner: int, pages: Numbers, oldest: int, context: int, size: int) -> list[_Edge]:
    cut = {place // size for place in (oldest, context) if place % size}
    return [
        _Edge(owner, int(pages[at]), max(oldest - at * size, 0), min(context - at * size, size))
        for at in sorted(cut)
    ]


def _parts(edges: Sequence[_Edge]) -> tuple[Numbers, NDArray[np.bool_]]:
    """Of each, the places of its tokens, as many as the longest has, and which are none."""
    begins = np.array([[edge.begin] for edge in edges], dtype=np.int64).reshape(-1, 1)
    ends = np.array([[edge.end] for edge in edges], dtype=np.int64).reshape(-1, 1)
    places = begins + np.arange(max((edge.end - edge.begin for edge in edges), default=0))
    return np.minimum(places, ends - 1), places >= ends


def _once(owners: Numbers) -> Numbers:
    """One for all where it is the same for all."""
    return owners[:1] if (owners == owners[0]).all() else owners


def _by_holders(
    whole: Sequence[Numbers],
) -> tuple[Numbers, Numbers, dict[tuple[int, ...], list[int]]]:
    """Pages of one holder, in order, and whose each is; and the others, by who holds them."""
    if not whole:
        nothing = np.zeros(0, dtype=np.int64)
        return nothing, nothing, {}
    pages = np.concatenate(whole)
    owners = np.repeat(np.arange(len(whole)), [len(each) for each in whole])
    order = np.argsort(pages, kind="stable")
    pages, owners = pages[order], owners[order]
    found, starts, counts = np.unique(pages, return_index=True, return_counts=True)
    single = counts == 1
    groups: dict[tuple[int, ...], list[int]] = {}
    for page, start, count in zip(found[~single], starts[~single], counts[~single], strict=True):
        holders = tuple(owners[start : start + count].tolist())
        groups.setdefault(holders, []).append(int(page))
    return found[single], owners[starts[single]], groups


def _runs(step: AttentionStep, pages: Numbers) -> list[tuple[Numbers, _Run]]:
    """`pages`, in order, cut into what one call attends to, and their places."""
    bounds = [0, *(np.flatnonzero(np.diff(pages) != 1) + 1).tolist(), len(pages)]
    found = []
    loose = np.ones(len(pages), dtype=bool)
    for begin, end in pairwise(bounds):
        if end - begin >= RUN_PAGES_MIN:
            places = np.arange(begin, end)
            run = _Run(int(pages[begin]), end - begin, step.tensor(pages[places]))
            found.append((places, run))
            loose[begin:end] = False
    others = np.flatnonzero(loose)
    for begin in range(0, len(others), COPIED_PAGES_MAX):
        places = others[begin : begin + COPIED_PAGES_MAX]
        found.append((places, _Run(-1, len(places), step.tensor(pages[places]))))
    return found


def _shared(step: AttentionStep, holders: tuple[int, ...], pages: list[int]) -> _Shared:
    runs = _runs(step, np.array(pages, dtype=np.int64))
    return _Shared(step.tensor(np.array(holders, dtype=np.int64)), tuple(run for _, run in runs))
