"""All single queries of a step over the pages where they lie: nothing is gathered.

A page is attended to on its own, with log-sum-exp, by the queries of one key head as rows; what
the pages of a sequence gave is then weighed by their sums. So a step takes its pages in any order:

    alone    pages of one sequence each, in runs of neighbours in the pool, one kernel call a run
    shared   pages that several sequences hold, once for all of them, one call for a run
    loose    the few that a run is not worth: neighbours of none, and pages of which a query sees a
             part only; that part is copied out, since unused slots may hold anything

Invariant: a `SingleQueries` is made of a step's spans and a window alone, and is used for its
layers one after the other. Engine's thread.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from worker.attention.backend import Options
from worker.attention.dense import flash_with_sums
from worker.attention.step import AttentionStep
from worker.paged_columns import PagedColumns

__all__ = ["SingleQueries", "single_queries"]

RUN_PAGES_MIN = 4
"""A kernel call costs about as much as copying so many pages out."""

Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Run:
    """Pages that lie one behind the other."""

    first: int
    count: int


@dataclass(frozen=True, slots=True)
class _Shared:
    """Pages that the same queries hold."""

    holders: torch.Tensor
    runs: tuple[_Run, ...]
    loose: torch.Tensor


@dataclass(frozen=True, slots=True)
class SingleQueries:
    """`count` queries; a unit is what one query gets of one page, or of all its shared ones."""

    count: int
    query_rows: torch.Tensor
    """Their rows in the step."""
    alone: tuple[_Run, ...]
    alone_owners: tuple[torch.Tensor, ...]
    """For each run, whose each page is, `[pages]`, or `[1]` where all are one query's."""
    loose: torch.Tensor
    """Pages, `[loose, 1]`."""
    loose_owners: torch.Tensor
    loose_tokens: torch.Tensor
    """`[loose, longest part]`, as are the hidden: places in the page, of which what is behind the
    query's part is its last token again."""
    loose_hidden: torch.Tensor
    shared: tuple[_Shared, ...]
    foreign: torch.Tensor
    """`[queries, units]`: which unit is another query's."""

    def attend(
        self, query: torch.Tensor, keys: PagedColumns, values: PagedColumns, options: Options
    ) -> torch.Tensor:
        """`query` is the whole step's, `[heads, tokens, dim]`; returns `[count, heads, dim]`."""
        heads, _, dim = query.shape
        rows = query.transpose(0, 1)[self.query_rows]
        rows = rows.reshape(self.count, keys.heads, heads // keys.heads, dim)
        k, v = keys.tiles.flatten(1, 2), values.tiles.flatten(1, 2)
        units = [
            *self._of_alone(rows, k, v, options.scale),
            *self._of_loose(rows, k, v, options.scale),
            *(_of_shared(each, rows, k, v, options.scale) for each in self.shared),
        ]
        outs, sums = zip(*units, strict=True)
        return self._weigh(torch.cat(outs), torch.cat(sums), options.sinks)

    def _of_alone(
        self, rows: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for run, owners in zip(self.alone, self.alone_owners, strict=True):
            pages = slice(run.first, run.first + run.count)
            own = rows[owners].expand(run.count, -1, -1, -1)
            yield flash_with_sums(own, k[pages], v[pages], scale)

    def _of_loose(
        self, rows: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        if not len(self.loose):
            return
        own_k, own_v = (x.transpose(1, 2)[self.loose, self.loose_tokens] for x in (k, v))
        hidden = self.loose_hidden[:, None, None]
        mask = torch.zeros(hidden.shape, dtype=rows.dtype).masked_fill_(hidden, float("-inf"))
        own = rows[self.loose_owners]
        yield flash_with_sums(own, own_k.transpose(1, 2), own_v.transpose(1, 2), scale, mask=mask)

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
    shared: _Shared, rows: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """One unit for each holder: what all of the pages gave it."""
    _, key_heads, group, dim = rows.shape
    holders = len(shared.holders)
    # The queries of all holders as rows of their key head.
    query = rows[shared.holders].transpose(0, 1).reshape(1, key_heads, holders * group, dim)
    found = [
        flash_with_sums(
            query.expand(run.count, -1, -1, -1),
            k[run.first : run.first + run.count],
            v[run.first : run.first + run.count],
            scale,
        )
        for run in shared.runs
    ]
    if len(shared.loose):
        many = query.expand(len(shared.loose), -1, -1, -1)
        found.append(flash_with_sums(many, k[shared.loose], v[shared.loose], scale))
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
    runs, loose = _runs(pages)
    shared = [_shared(step, holders, of_all) for holders, of_all in groups.items()]
    edges += [
        _Edge(owner, page, 0, size)
        for owner, page in zip(owners[loose].tolist(), pages[loose].tolist(), strict=True)
    ]
    loose_owners = [edge.owner for edge in edges]
    tokens, hidden = _parts(edges)
    unit_owners = np.concatenate(
        [*(owners[run] for run in runs), loose_owners, *(holders for holders in groups)]
    )
    return SingleQueries(
        count=len(spans),
        query_rows=step.tensor(np.array([span.query_start for span in spans], dtype=np.int64)),
        alone=tuple(_Run(int(pages[run.start]), run.stop - run.start) for run in runs),
        alone_owners=tuple(step.tensor(_once(owners[run])) for run in runs),
        loose=step.tensor(np.array([[edge.page] for edge in edges], dtype=np.int64)),
        loose_owners=step.tensor(np.array(loose_owners, dtype=np.int64)),
        loose_tokens=step.tensor(tokens),
        loose_hidden=torch.from_numpy(hidden).to(step.device),
        shared=tuple(shared),
        foreign=torch.from_numpy(unit_owners != np.arange(len(spans))[:, None]).to(step.device),
    )


@dataclass(frozen=True, slots=True)
class _Edge:
    """A loose page, of which a query sees the tokens `[begin, end)`."""

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


def _runs(pages: Numbers) -> tuple[list[slice], Numbers]:
    """`pages`, in order, as long enough runs of neighbours, and the places of the others."""
    bounds = [0, *(np.flatnonzero(np.diff(pages) != 1) + 1).tolist(), len(pages)]
    runs = [slice(a, b) for a, b in pairwise(bounds) if b - a >= RUN_PAGES_MIN]
    loose = np.ones(len(pages), dtype=bool)
    for run in runs:
        loose[run] = False
    return runs, np.flatnonzero(loose)


def _shared(step: AttentionStep, holders: tuple[int, ...], pages: list[int]) -> _Shared:
    numbers = np.array(pages, dtype=np.int64)
    runs, loose = _runs(numbers)
    return _Shared(
        step.tensor(np.array(holders, dtype=np.int64)),
        tuple(_Run(int(numbers[run.start]), run.stop - run.start) for run in runs),
        step.tensor(numbers[loose]),
    )
