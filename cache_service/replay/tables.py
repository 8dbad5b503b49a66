"""A replay's result as people read it."""

from collections.abc import Iterator

from rich.filesize import decimal
from rich.table import Table

from cache_service.replay.result import ReplayResult, WritesTurnedAway

__all__ = ["result_table"]

Row = tuple[str, str]


def result_table(result: ReplayResult) -> Table:
    table = Table(title=f"Replay of {result.trace}", title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("how much", justify="right")
    for section in (_setup(result), _hits(result), _room(result), _writes(result), _money(result)):
        for row in section:
            table.add_row(*row)
        table.add_section()
    return table


def _setup(result: ReplayResult) -> Iterator[Row]:
    yield "requests", f"{result.requests:,}"
    yield "block accesses", f"{result.accesses:,}"
    yield "unique blocks", f"{result.unique_blocks:,} of {result.block_tokens:,} tokens"
    yield "policy", result.policy


def _hits(result: ReplayResult) -> Iterator[Row]:
    yield "block hit rate", f"{result.block_rate(result.hit_blocks):.2%}"
    if result.ssd_capacity_blocks is not None:
        yield "  from host memory", f"{result.block_rate(result.host_hit_blocks):.2%}"
    if result.opt_hit_blocks is not None:
        lost = result.block_rate(result.opt_hit_blocks - result.hit_blocks)
        yield "  of the best possible", f"{result.block_rate(result.opt_hit_blocks):.2%}"
        yield "  missing to it", f"{lost * 100:.2f} points"
    yield "token hit rate", f"{result.token_hit_rate:.2%}"


def _room(result: ReplayResult) -> Iterator[Row]:
    yield "host memory", f"{result.host_capacity_blocks:,} blocks"
    yield "  evicted", f"{result.host_evictions:,}"
    if result.ssd_capacity_blocks is not None:
        yield "SSD", f"{result.ssd_capacity_blocks:,} blocks"
        yield "  evicted", f"{result.ssd_evictions:,}"
    yield "stranded blocks", f"{result.stranded_blocks:,}"


def _writes(result: ReplayResult) -> Iterator[Row]:
    if result.ssd_capacity_blocks is None:
        return
    yield "admission, written when", f"{result.admission}, {result.write_when}"
    yield "blocks written to the SSD", f"{result.ssd_block_writes:,}"
    yield f"  at {decimal(result.block_bytes)} each", decimal(result.ssd_bytes_written)
    if result.ssd_relogged_blocks:
        yield "  of them written again", f"{result.ssd_relogged_blocks:,}"
    yield from _turned_away("refused by admission", result.refused)
    yield from _turned_away("over the write budget", result.over_budget)


def _turned_away(what: str, writes: WritesTurnedAway | None) -> Iterator[Row]:
    if writes is not None:
        yield what, f"{writes.blocks:,} blocks"
        yield "  hits known to be lost by it", f"{writes.lost_hits:,}"


def _money(result: ReplayResult) -> Iterator[Row]:
    savings = result.savings
    if savings is not None:
        saved = savings.without_cache - savings.with_cache
        yield "input without a cache", f"{savings.without_cache:,.2f} {savings.currency}"
        yield "input with this one", f"{savings.with_cache:,.2f} {savings.currency}"
        yield "saved", f"{saved:,.2f} {savings.currency}"
