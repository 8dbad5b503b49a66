"""`kvtier cache events`: what a cache gains and loses, a line an event, for people or programs.

Standard output has the lines alone; where to go on from is said on standard error at the end.
"""

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from rich.filesize import decimal

from kvtier.cli.channel import open_channel
from kvtier.v1 import block_pb2, events_pb2_grpc
from kvtier.v1 import events_pb2 as pb

__all__ = ["HEADER", "json_lines", "last_of", "messages", "position_of", "text_lines"]

HASH_BYTES = 32
_SHOWN = 16
"""Hexadecimal digits of a hash that people get to see."""
_ROW = "{:>12}  {:<8}  {:<8}  {:<12}  {:<16}  {:<16}  {:<16}  {:>10}"

HEADER = _ROW.format("event", "what", "tier", "why", "block", "after", "namespace", "size")


def position_of(text: str) -> pb.EventPosition:
    """From INSTANCE:SEQUENCE. Raises ValueError."""
    instance_id, _, sequence = text.rpartition(":")
    if not instance_id or not sequence.isdecimal():
        raise ValueError("write it as INSTANCE:SEQUENCE, as it was printed at the end")
    return pb.EventPosition(instance_id=instance_id, sequence=int(sequence))


def messages(
    address: str, request: pb.WatchEventsRequest, follow: bool
) -> Iterator[pb.WatchEventsResponse]:
    """The stream; without `follow` until it has caught up. Raises grpc.RpcError."""
    with open_channel(address) as channel:
        call = events_pb2_grpc.CacheEventsStub(channel).WatchEvents(request)
        with closing(_Cancelling(call)):
            for message in call:
                yield message
                if not follow and last_of(message):
                    return


def last_of(message: pb.WatchEventsResponse) -> bool:
    """True for a message that nothing already known follows: a snapshot's end, or nothing new."""
    if message.snapshot == pb.SNAPSHOT_STATE_UNSPECIFIED:
        return not message.events
    return message.snapshot == pb.SNAPSHOT_STATE_DONE


class _Cancelling:
    """Cancels the call on the way out."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def close(self) -> None:
        self._call.cancel()


def json_lines(message: pb.WatchEventsResponse) -> Iterator[str]:
    """An object a line: events, cached blocks (kind "cached"), and where the stream is (kind
    "position") once it can be continued there and has nothing more to tell."""
    for sequence, run, block_hash, parent in _events(message):
        yield json.dumps(
            {
                "sequence": sequence,
                "kind": _kind(run),
                "tier": _tier(run.tier),
                "reason": _reason(run),
                "block_hash": block_hash.hex(),
                "parent_hash": parent.hex() if any(parent) else None,
                "namespace_id": run.namespace_id.hex(),
                "block_bytes": run.block_bytes,
            }
        )
    for blocks, block_hash, parent in _blocks(message):
        yield json.dumps(
            {
                "kind": "cached",
                "tiers": [_tier(tier) for tier in blocks.tiers],
                "block_hash": block_hash.hex(),
                "parent_hash": parent.hex() if any(parent) else None,
                "namespace_id": blocks.namespace_id.hex(),
                "block_bytes": blocks.block_bytes,
            }
        )
    if last_of(message):
        place = message.position
        yield json.dumps(
            {"kind": "position", "instance_id": place.instance_id, "sequence": place.sequence}
        )


def text_lines(message: pb.WatchEventsResponse) -> Iterator[str]:
    """Rows under `HEADER`."""
    for sequence, run, block_hash, parent in _events(message):
        names = (block_hash, parent, run.namespace_id)
        said = (_kind(run), _tier(run.tier), _reason(run) or "")
        yield _ROW.format(f"{sequence:,}", *said, *map(_short, names), decimal(run.block_bytes))
    for blocks, block_hash, parent in _blocks(message):
        tiers = "+".join(_tier(tier) for tier in blocks.tiers)
        names = (block_hash, parent, blocks.namespace_id)
        size = decimal(blocks.block_bytes)
        yield _ROW.format("", "cached", tiers, "", *map(_short, names), size)


def _events(
    message: pb.WatchEventsResponse,
) -> Iterator[tuple[int, pb.EventRun, bytes, bytes]]:
    count = sum(len(run.block_hashes) // HASH_BYTES for run in message.events)
    sequence = message.position.sequence - count
    for run in message.events:
        for block_hash, parent in _pairs(run.block_hashes, run.parent_hashes):
            sequence += 1
            yield sequence, run, block_hash, parent


def _blocks(
    message: pb.WatchEventsResponse,
) -> Iterator[tuple[pb.SnapshotRun, bytes, bytes]]:
    for blocks in message.blocks:
        for block_hash, parent in _pairs(blocks.block_hashes, blocks.parent_hashes):
            yield blocks, block_hash, parent


def _pairs(hashes: bytes, parents: bytes) -> Iterator[tuple[bytes, bytes]]:
    for at in range(0, len(hashes), HASH_BYTES):
        yield hashes[at : at + HASH_BYTES], parents[at : at + HASH_BYTES]


def _kind(run: pb.EventRun) -> str:
    return pb.EventKind.Name(run.kind).removeprefix("EVENT_KIND_").lower()


def _tier(tier: block_pb2.Tier) -> str:
    return block_pb2.Tier.Name(tier).removeprefix("TIER_").lower()


def _reason(run: pb.EventRun) -> str | None:
    """Why a copy left; None for one that came."""
    if not run.reason:
        return None
    return block_pb2.MissReason.Name(run.reason).removeprefix("MISS_REASON_").lower()


def _short(name: bytes) -> str:
    return name.hex()[:_SHOWN] if any(name) else ""
