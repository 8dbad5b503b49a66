"""`kvtier cache explain` for people: what hits, what misses, why, and what it costs. Pure."""

import time
from collections.abc import Iterable, Iterator

from google.protobuf.timestamp_pb2 import Timestamp
from rich import box
from rich.filesize import decimal
from rich.table import Table

from cache_service.explanation import Explanation, OtherScope, reason_name
from kvtier.blocks import MissReason, Tier
from kvtier.v1 import explain_pb2 as pb

__all__ = ["acquire_lines", "ago", "prompt_lines", "prompt_table", "seconds_text", "tiers_text"]

_PLACES = {
    Tier.GPU: "worker's pages",
    Tier.HOST: "host memory",
    Tier.SSD: "SSD",
    Tier.SHARED: "shared tier",
}

_REASONS = {
    MissReason.NEVER_STORED: "the cache has no memory of it: it was never stored, or too long ago,"
    " or before the service's last start",
    MissReason.EVICTED: "it was cached and had to leave to make room",
    MissReason.EXPIRED: "its time was over",
    MissReason.OTHER_SCOPE: "it is cached for another scope",
    MissReason.OTHER_NAMESPACE: "it is cached for another model, layout or block size",
    MissReason.TOO_SHORT: "the prompt has no whole block that leaves a token to compute",
    MissReason.CORRUPT: "its bytes failed their checksum and were dropped",
    MissReason.DEADLINE: "loading it would have passed the deadline",
    MissReason.QUOTA: "its owner's quota was used up",
    MissReason.NO_STORE: "the request asked for no caching",
    MissReason.UNAVAILABLE: "it is on the SSD, and the SSD does not answer now",
    MissReason.ARENA_FULL: "no host memory was free to load it into",
    MissReason.RECOMPUTE_FASTER: "it is on the SSD, and computing it was faster than loading it",
    MissReason.PURGED: "an operator had it purged",
    MissReason.WITHIN_UNIT: "it is there, and no prefix unit ends between here and there",
}


def prompt_table(said: Explanation) -> Table:
    """Where the prompt's tokens come from."""
    prompt = said.prompt
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, show_footer=True)
    whole = said.block_count * prompt.block_tokens
    blocks = sum(said.hit_blocks.values())
    table.add_column("tokens come from", "in all")
    table.add_column("tokens", f"{prompt.prompt_tokens:,}", justify="right")
    table.add_column("blocks", f"{said.block_count:,}", justify="right")
    table.add_column("bytes", justify="right")
    table.add_column("ready", justify="left")
    for tier, count in said.hit_blocks.items():
        if count:
            table.add_row(
                _PLACES[tier],
                f"{count * prompt.block_tokens:,}",
                f"{count:,}",
                decimal(count * prompt.block_bytes),
                _ready(said, tier),
            )
    missing = said.block_count - blocks
    if missing:
        tokens = f"{missing * prompt.block_tokens:,}"
        table.add_row("computed: missing", tokens, f"{missing:,}", "", "")
    rest = f"{prompt.prompt_tokens - whole:,}"
    table.add_row("computed: the rest", rest, "", "", "")
    return table


def prompt_lines(said: Explanation, now: float | None = None) -> Iterator[str]:
    """The sentences under the table. `now` in Unix seconds."""
    prompt = said.prompt
    share = said.hit_tokens / prompt.prompt_tokens
    yield f"{said.hit_tokens:,} of {prompt.prompt_tokens:,} tokens would be hits ({share:.0%})."
    if said.miss_reason is not MissReason.NONE:
        yield _miss(said)
    if said.other_scope is not None:
        yield _elsewhere(said.other_scope)
    if said.divergence is not None:
        yield from _divergence_lines(said.divergence, now)
    if said.savings is not None:
        costs = said.savings
        yield (
            f"The input costs {costs.with_cache:f} {costs.currency},"
            f" without a cache {costs.without_cache:f}:"
            f" {costs.without_cache - costs.with_cache:f} saved"
            f" (price book {costs.price_book_version})."
        )


def acquire_lines(record: pb.AcquireRecord, now: float | None = None) -> Iterator[str]:
    """An acquire as it went, the heading first."""
    name = record.client_name or "a client without a name"
    yield f"Request {record.request_id or '(without an id)'}, {ago(record.start_time, now)}, {name}"
    took = seconds_text(record.duration.ToTimedelta().total_seconds())
    ends = {
        pb.ACQUIRE_STATE_RUNNING: f"it runs, for {took} now",
        pb.ACQUIRE_STATE_GIVEN_UP: f"its client gave it up after {took}",
    }
    yield (
        f"  asked for {_blocks(record.asked_count)}; {record.matched_count:,} were there"
        f"{tiers_text(record.shares)}; {record.ready_count:,} became readable;"
        f" {ends.get(record.state, f'it took {took}')}"
    )
    if record.match_reason:
        yield (
            f"  block {record.matched_count:,} of them was missing"
            f" ({reason_name(record.match_reason)}): {_why(record.match_reason)}"
        )
    if record.miss_reason and record.miss_reason != record.match_reason:
        yield (
            f"  block {record.ready_count:,} could not be given"
            f" ({reason_name(record.miss_reason)}): {_why(record.miss_reason)}"
        )
    if record.missing_cached_now:
        yield "  the block that was missing is cached now"
    elif not record.matched_count:
        yield "  blocks that the worker had in its pages were not asked for"
    elif record.HasField("divergence"):
        yield from (f"  {line}" for line in _divergence_lines(record.divergence, now))


def tiers_text(shares: Iterable[pb.TierShare]) -> str:
    """ "(6 host memory, 2 SSD)" after a space, or nothing."""
    parts = [f"{share.block_count:,} {_PLACES[Tier(share.tier)]}" for share in shares]
    return f" ({', '.join(parts)})" if parts else ""


def ago(when: Timestamp, now: float | None = None) -> str:
    """ "3 min ago"."""
    seconds = max(0.0, (time.time() if now is None else now) - when.ToMicroseconds() / 1e6)
    return f"{_age(seconds)} ago"


def seconds_text(seconds: float) -> str:
    """Of a duration that somebody waits for."""
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:,.2f} s"


def _age(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _blocks(count: int) -> str:
    return f"{count:,} block{'' if count == 1 else 's'}"


def _ready(said: Explanation, tier: Tier) -> str:
    if tier is not Tier.SSD:
        return "at once"
    if said.load_seconds is None:
        return "unknown: no read yet"
    rate = f"{decimal(said.tail.ssd_rate.bytes_per_second)}/s"
    waiting = said.tail.ssd_rate.waiting_bytes
    behind = f", behind {decimal(waiting)} of others" if waiting else ""
    return f"in {seconds_text(said.load_seconds)} ({rate}{behind})"


def _miss(said: Explanation) -> str:
    reason = said.miss_reason
    if reason is MissReason.TOO_SHORT:
        return f"Nothing may be a hit ({reason_name(reason)}): {_why(reason)}."
    end = sum(said.hit_blocks.values())
    token = end * said.prompt.block_tokens
    block = f"Block {end:,} (from token {token:,} on, {said.block_hash(end)[:12]})"
    if reason is MissReason.WITHIN_UNIT:
        return (
            f"{block} is no hit ({reason_name(reason)}): {_blocks(said.stored_blocks - end)} more"
            f" {'is' if said.stored_blocks - end == 1 else 'are'} there, and no prefix unit ends"
            " with one of them."
        )
    return f"{block} is missing ({reason_name(reason)}): {_why(reason)}."


def _elsewhere(other: OtherScope) -> str:
    where = f"the scope {other.scope_path}" if other.scope_path else "the public scope"
    return (
        f"{other.tokens:,} tokens of the same text ({_blocks(other.block_count)}) are cached in"
        f" {where}, which this request does not read."
    )


def _why(reason: int) -> str:
    known = {int(each): text for each, text in _REASONS.items()}
    return known.get(reason, "a reason that this release of the command does not know")


def _divergence_lines(where: pb.Divergence, now: float | None) -> Iterator[str]:
    if not where.index:
        yield "No cached chain begins as this one does: it differs from its first block on."
        return
    if not where.HasField("nearest"):
        yield "Nothing cached goes on from there."
        return
    near = where.nearest
    others = f"{where.chain_count:,} cached chains go" if where.chain_count > 1 else "One goes"
    more = "" if near.whole else "at least "
    used = f"used {ago(near.last_use_time, now)}" if near.HasField("last_use_time") else ""
    size = decimal(sum(share.payload_bytes for share in near.shares))
    yield (
        f"{others} on differently from block {where.index:,} on; nearest is"
        f" {near.hash_prefix.hex()[:12]}: {more}{_blocks(near.depth)} deep, {more}"
        f"{near.block_count:,} in all{tiers_text(near.shares)}, {size} of copies, "
        f"{used or 'not used since the start'}."
    )
