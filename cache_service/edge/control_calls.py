"""The calls of `kvtier.v1.ControlService`: check, have the core do it, note it, convert.

Invariant: what was done is in the audit log before it is answered, also when the caller went away
meanwhile. Event loop.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from cache_service import wire
from cache_service.edge.calls import Context
from cache_service.pin_views import PinView
from cache_service.purge_views import (
    KeyDestruction,
    PurgeKind,
    PurgeTarget,
    PurgeView,
    ShredView,
)
from kvtier.access import audit_note
from kvtier.keys import HASH_BYTES, BlockHash, NamespaceId
from kvtier.serving import MalformedRequestError
from kvtier.v1 import control_pb2 as pb
from kvtier.v1 import control_pb2_grpc

if TYPE_CHECKING:
    from cache_service.cache import Cache

__all__ = ["CONTROL_SERVICE", "ControlServicer", "purge_target"]

CONTROL_SERVICE = pb.DESCRIPTOR.services_by_name["ControlService"].full_name

NOTED_KEYS_MAX = 64
"""Ids in a line of the audit log."""

_FIELDS: dict[PurgeKind, set[str]] = {
    PurgeKind.PREFIX: {"namespace_id", "block_hash"},
    PurgeKind.REQUEST: {"of_request_id"},
    PurgeKind.SESSION: {"of_session_id"},
    PurgeKind.NAMESPACE: {"namespace_id"},
    PurgeKind.EVERYTHING: set(),
    PurgeKind.OWNER: {"of_owner"},
}


class ControlServicer(control_pb2_grpc.ControlServiceServicer):
    """Has the cache's controlling sides act. `wall_clock`: Unix seconds."""

    def __init__(self, cache: "Cache", wall_clock: Callable[[], float] = time.time) -> None:
        self._cache = cache
        self._wall_clock = wall_clock

    def before_drain(self) -> None:
        """Ends a purge under way before its next slice, and a prewarm after its group."""
        self._cache.purging.stop()
        self._cache.prewarming.stop()

    async def PurgeBlocks(
        self, request: pb.PurgeBlocksRequest, context: Context
    ) -> pb.PurgeBlocksResponse:
        target = purge_target(request.target)
        if request.shred and not target.shreddable:
            raise MalformedRequestError(
                "a shred is of a whole organisation or of everything: those have data keys",
                field="shred",
            )
        purge = self._cache.purging.start(
            target, dry_run=request.dry_run, force=request.force, shred=request.shred
        )
        try:
            view = await asyncio.shield(purge)
        except asyncio.CancelledError:
            # The caller is gone and the purge goes on: its line waits for what it did.
            audit_note(_note(await purge))
            raise
        audit_note(_note(view))
        return pb.PurgeBlocksResponse(receipt=self._receipt(request.target, view))

    def _receipt(self, target: pb.PurgeTarget, view: PurgeView) -> pb.PurgeReceipt:
        ended = self._wall_clock()
        return pb.PurgeReceipt(
            purge_id=view.purge_id,
            instance_id=self._cache.instance_id,
            target=target,
            dry_run=view.dry_run,
            start_time=wire.timestamp(ended - view.seconds),
            end_time=wire.timestamp(ended),
            block_count=view.block_count,
            copies=[
                pb.PurgedCopies(
                    tier=wire.tier(each.tier),
                    copy_count=each.copy_count,
                    payload_bytes=each.payload_bytes,
                )
                for each in view.copies
            ],
            hashes_sha256=view.hashes_sha256,
            held_count=view.held_count,
            ssd_forgetting=_number(view.ssd_forgetting),
            shared_forgetting=_number(view.shared_forgetting),
            shared_left_count=view.shared_left_count,
            pin_count=view.pin_count,
            shred=_shred(view.shred, ended) if view.shred is not None else None,
        )

    async def PinPrefix(
        self, request: pb.PinPrefixRequest, context: Context
    ) -> pb.PinPrefixResponse:
        namespace_id = _hash("namespace_id", request.namespace_id)
        block_hash = _hash("block_hash", request.block_hash)
        owner = wire.text("owner", request.owner)
        if namespace_id is None or block_hash is None or not owner:
            raise MalformedRequestError("a pin names a namespace, a block and an owner")
        seconds = request.ttl.seconds + request.ttl.nanos / 1e9
        longest = self._cache.pins.seconds_max
        if not 0 < seconds <= longest:
            raise MalformedRequestError(
                f"a pin lasts more than 0 and at most {longest:.0f} seconds", field="ttl"
            )
        view = await self._cache.pins.pin(
            NamespaceId(namespace_id), BlockHash(block_hash), owner, seconds
        )
        audit_note(f"pin=(pin_id={view.pin.pin_id} blocks={len(view.pin.chain)})")
        return pb.PinPrefixResponse(pin=_pin(view))

    async def UnpinPrefix(
        self, request: pb.UnpinPrefixRequest, context: Context
    ) -> pb.UnpinPrefixResponse:
        await self._cache.pins.unpin(wire.text("pin_id", request.pin_id))
        return pb.UnpinPrefixResponse()

    async def PrewarmPrefix(
        self, request: pb.PrewarmPrefixRequest, context: Context
    ) -> AsyncIterator[pb.PrewarmPrefixResponse]:
        namespace_id = _hash("namespace_id", request.namespace_id)
        block_hash = _hash("block_hash", request.block_hash)
        if namespace_id is None or block_hash is None:
            raise MalformedRequestError("a prewarm names a namespace and a block")
        if request.bytes_max < 0:
            raise MalformedRequestError("a budget is not below 0 bytes", field="bytes_max")
        views = self._cache.prewarming.prewarm(
            NamespaceId(namespace_id), BlockHash(block_hash), request.bytes_max
        )
        async with aclosing(views):
            async for view in views:
                if view.done:
                    audit_note(f"prewarm=(blocks={view.loaded_count} bytes={view.loaded_bytes})")
                yield pb.PrewarmPrefixResponse(
                    block_count=view.block_count,
                    host_count=view.host_count,
                    wanted_count=view.wanted_count,
                    loaded_count=view.loaded_count,
                    loaded_bytes=view.loaded_bytes,
                    done=view.done,
                    miss_reason=wire.reason(view.reason),
                )

    async def ListPins(
        self, request: pb.ListPinsRequest, context: Context
    ) -> AsyncIterator[pb.ListPinsResponse]:
        async with aclosing(self._cache.pins.views()) as views:
            async for view in views:
                yield pb.ListPinsResponse(pin=_pin(view))


def purge_target(message: pb.PurgeTarget) -> PurgeTarget:
    """Raises MalformedRequestError."""
    try:
        kind = PurgeKind(message.kind)
    except ValueError:
        raise MalformedRequestError("name the kind of what to purge", field="target") from None
    given = {field.name for field, _ in message.ListFields()} - {"kind"}
    if given != _FIELDS[kind]:
        wanted = " and ".join(sorted(_FIELDS[kind])) or "nothing else"
        raise MalformedRequestError(
            f"a purge of kind {kind.name} names {wanted}, and no more", field="target"
        )
    namespace_id = _hash("namespace_id", message.namespace_id)
    block_hash = _hash("block_hash", message.block_hash)
    return PurgeTarget(
        kind,
        None if namespace_id is None else NamespaceId(namespace_id),
        None if block_hash is None else BlockHash(block_hash),
        wire.text("of_request_id", message.of_request_id),
        wire.text("of_session_id", message.of_session_id),
        wire.owner("of_owner", message.of_owner) if message.of_owner else "",
    )


def _pin(view: PinView) -> pb.Pin:
    pin = view.pin
    return pb.Pin(
        pin_id=pin.pin_id,
        namespace_id=pin.namespace_id,
        block_hash=pin.chain[-1],
        block_count=len(pin.chain),
        payload_bytes=len(pin.chain) * pin.block_bytes,
        owner=pin.owner,
        create_time=wire.timestamp(pin.created),
        expire_time=wire.timestamp(pin.expires),
        cached_count=view.cached_count,
        ssd_count=view.ssd_count,
        survives_restart=view.survives_restart,
    )


def _shred(view: ShredView, ended: float) -> pb.Shred:
    message = pb.Shred(
        key_ids=view.key_ids,
        destruction=_number(view.destruction),
        clear_count=view.clear_count,
        clear_segment_count=view.clear_segment_count,
    )
    if view.destruction is KeyDestruction.DURABLE:
        message.destroy_time.CopyFrom(wire.timestamp(ended))
    return message


def _hash(name: str, value: bytes) -> bytes | None:
    """None when it was not given. Raises MalformedRequestError."""
    if value and len(value) != HASH_BYTES:
        raise MalformedRequestError(f"{name} has {HASH_BYTES} bytes", field=name)
    return value or None


def _number(value: int) -> Any:
    return int(value)


def _note(view: PurgeView) -> str:
    """The receipt, for the audit log."""
    copies = " ".join(
        f"{each.tier.name.lower()}={each.copy_count}/{each.payload_bytes}" for each in view.copies
    )
    return (
        f"receipt=(purge_id={view.purge_id} blocks={view.block_count} {copies}"
        f" held={view.held_count} pins={view.pin_count}"
        f" ssd_forgetting={view.ssd_forgetting.name.lower()}"
        f" shared_forgetting={view.shared_forgetting.name.lower()}"
        f" shared_left={view.shared_left_count}"
        f" hashes_sha256={view.hashes_sha256.hex()}{_shred_note(view.shred)})"
    )


def _shred_note(view: ShredView | None) -> str:
    if view is None:
        return ""
    named = ",".join(each.hex() for each in view.key_ids[:NOTED_KEYS_MAX])
    more = len(view.key_ids) - NOTED_KEYS_MAX
    return (
        f" shred=(keys={len(view.key_ids)} destruction={view.destruction.name.lower()}"
        f" clear={view.clear_count} clear_segments={view.clear_segment_count}"
        f" key_ids={named}{f',and {more} more' if more > 0 else ''})"
    )
