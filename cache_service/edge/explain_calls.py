"""The calls of `kvtier.v1.ExplainService`: check, ask the explaining side, convert.

Invariant: an operator sees everything; whoever is only an engine sees what it names by chain, of no
other scope, and its own sessions' acquires. Event loop; a listing gives it away between two
messages.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp

from cache_service import wire
from cache_service.chains import Chain
from cache_service.edge.calls import Context
from cache_service.explain_views import (
    AcquireView,
    DivergenceView,
    TierShareView,
    TreeNodeView,
)
from cache_service.tree_walk import START, Place
from kvtier.access import RoleNotAllowedError, caller
from kvtier.keys import HASH_BYTES, BlockHash, NamespaceId
from kvtier.principals import Role
from kvtier.serving import MalformedRequestError
from kvtier.v1 import explain_pb2 as pb
from kvtier.v1 import explain_pb2_grpc

if TYPE_CHECKING:
    from cache_service.cache import Cache

__all__ = ["EXPLAIN_SERVICE", "ExplainServicer"]

EXPLAIN_SERVICE = pb.DESCRIPTOR.services_by_name["ExplainService"].full_name

OTHER_SCOPES_MAX = 8
"""The rungs of a ladder, each with shared prefixes and without."""

PAGE_NODES = 1000
PAGE_NODES_MAX = 10_000


class ExplainServicer(explain_pb2_grpc.ExplainServiceServicer):
    """Serves what the cache's explaining side says. `wall_clock`: Unix seconds."""

    def __init__(self, cache: "Cache", wall_clock: Callable[[], float] = time.time) -> None:
        self._cache = cache
        self._wall_clock = wall_clock

    async def ExplainPrefix(
        self, request: pb.ExplainPrefixRequest, context: Context
    ) -> pb.ExplainPrefixResponse:
        if request.block_bytes < 0:
            raise MalformedRequestError("block_bytes must be 0 or more", field="block_bytes")
        view = self._cache.explaining.prefix(
            NamespaceId(request.namespace_id),
            request.block_bytes,
            wire.chain(request.block_hashes),
            whole_units=request.whole_units,
            others=_other_scopes(request.other_scope_hashes),
        )
        response = pb.ExplainPrefixResponse(
            present_count=view.present_count,
            tiers=view.tiers,
            shares=_shares(view.shares),
            ssd_rate=pb.ReadRate(
                bytes_per_second=int(view.read_bytes_per_second or 0),
                waiting_bytes=view.waiting_bytes,
            ),
            miss_reason=wire.reason(view.miss_reason),
            stored_count=view.stored_count,
        )
        if view.other_scope is not None:
            response.other_scope.index = view.other_scope.index
            response.other_scope.present_count = view.other_scope.present_count
        if view.load_seconds is not None:
            response.load_time.CopyFrom(wire.duration(view.load_seconds))
        if view.divergence is not None:
            response.divergence.CopyFrom(self._divergence(view.divergence))
        return response

    async def ExplainAcquire(
        self, request: pb.ExplainAcquireRequest, context: Context
    ) -> pb.ExplainAcquireResponse:
        request_id = wire.text("request_id", request.request_id)
        lease_id = wire.text("lease_id", request.lease_id)
        if bool(request_id) == bool(lease_id):
            raise MalformedRequestError("name a request_id or a lease_id, one of them")
        asker = caller()
        owner = None if Role.OPERATOR in asker.roles else asker.key
        found = self._cache.explaining.found(request_id, lease_id, owner)
        return pb.ExplainAcquireResponse(acquires=map(self._acquire, found))

    async def ListTree(
        self, request: pb.ListTreeRequest, context: Context
    ) -> AsyncIterator[pb.ListTreeResponse]:
        left = request.page_size or PAGE_NODES
        if not 0 < left <= PAGE_NODES_MAX:
            raise MalformedRequestError(
                f"page_size must be from 1 to {PAGE_NODES_MAX}, or 0 for {PAGE_NODES}",
                field="page_size",
            )
        namespace_id = _hash("namespace_id", request.namespace_id)
        under = _hash("under_block_hash", request.under_block_hash)
        place: Place | None = _place(request.page_token)
        while place is not None and left > 0:
            part = self._cache.explaining.tree(
                place,
                None if namespace_id is None else NamespaceId(namespace_id),
                None if under is None else BlockHash(under),
                left,
            )
            place, left = part.place, left - len(part.nodes)
            ends = place is None or left <= 0
            yield pb.ListTreeResponse(
                nodes=map(self._node, part.nodes),
                changed=part.changed,
                next_page_token=place.encode() if ends and place is not None else b"",
            )
            await asyncio.sleep(0)

    # -- conversions -------------------------------------------------------------------------------

    def _before(self, seconds: float | None) -> Timestamp | None:
        return None if seconds is None else wire.timestamp(self._wall_clock() - seconds)

    def _divergence(self, view: DivergenceView) -> pb.Divergence:
        message = pb.Divergence(index=view.index, chain_count=view.chain_count)
        if (chain := view.nearest) is not None:
            message.nearest.CopyFrom(
                pb.CachedChain(
                    hash_prefix=chain.hash_prefix,
                    depth=chain.depth,
                    block_count=chain.block_count,
                    shares=_shares(chain.shares),
                    last_use_time=self._before(chain.unused_seconds),
                    whole=chain.whole,
                )
            )
        return message

    def _acquire(self, view: AcquireView) -> pb.AcquireRecord:
        state = pb.ACQUIRE_STATE_RUNNING if view.running else pb.ACQUIRE_STATE_ENDED
        return pb.AcquireRecord(
            request_id=view.request_id,
            lease_id=view.lease_id,
            client_name=view.client_name,
            namespace_id=view.namespace_id,
            start_time=self._before(view.started_seconds),
            state=pb.ACQUIRE_STATE_GIVEN_UP if view.given_up else state,
            asked_count=view.asked_count,
            shares=_shares(view.shares),
            matched_count=view.matched_count,
            match_reason=wire.reason(view.match_reason),
            ready_count=view.ready_count,
            miss_reason=wire.reason(view.miss_reason),
            duration=wire.duration(view.duration_seconds),
            divergence=None if view.divergence is None else self._divergence(view.divergence),
            missing_cached_now=view.missing_cached_now,
        )

    def _node(self, view: TreeNodeView) -> pb.TreeNode:
        return pb.TreeNode(
            block_hash=view.block_hash,
            last_block_hash=view.last_block_hash,
            parent_block_hash=view.parent_block_hash,
            namespace_id=view.namespace_id,
            block_bytes=view.block_bytes,
            block_count=view.block_count,
            shares=_shares(view.shares),
            hit_count=view.hit_count,
            last_use_time=self._before(view.unused_seconds),
            pinned_count=view.pinned_count,
            child_count=view.child_count,
            host_leaving_rank=view.host_leaving_rank,
            ssd_leaving_count=view.ssd_leaving_count,
            owner=view.owner,
        )


def _shares(views: Iterable[TierShareView]) -> list[pb.TierShare]:
    return [
        pb.TierShare(
            tier=wire.tier(view.tier),
            block_count=view.block_count,
            payload_bytes=view.payload_bytes,
        )
        for view in views
    ]


def _other_scopes(packed: Sequence[bytes]) -> list[Chain]:
    """Raises RoleNotAllowedError, MalformedRequestError, MalformedChainError."""
    if packed and Role.OPERATOR not in caller().roles:
        raise RoleNotAllowedError(
            "other_scope_hashes is for operators: leave it out, or ask as one",
            allowed=Role.OPERATOR.value,
        )
    if len(packed) > OTHER_SCOPES_MAX:
        raise MalformedRequestError(
            f"{len(packed)} other chains; at most {OTHER_SCOPES_MAX}", field="other_scope_hashes"
        )
    return [wire.chain(each) for each in packed]


def _hash(name: str, value: bytes) -> bytes | None:
    """None when it was not given. Raises MalformedRequestError."""
    if value and len(value) != HASH_BYTES:
        raise MalformedRequestError(f"{name} must have {HASH_BYTES} bytes, or none", field=name)
    return value or None


def _place(token: bytes) -> Place:
    """Raises MalformedRequestError."""
    if not token:
        return START
    try:
        return Place.decode(token)
    except ValueError:
        raise MalformedRequestError(
            "page_token is none of this service's; begin without one", field="page_token"
        ) from None
