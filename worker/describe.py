"""The calls of `kvtier.v1.DescribeService`: what a prompt is to the cache. Convert, ask, convert.

Invariant: the names are those that Generate would give the same prompt for the same caller, since
the same desk takes it in and the same function names it; nothing is computed, used or metered.
Event loop; the engine answers from its own thread, between two steps.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from kvtier.keys import BlockHash, Namespace, block_chain, pack_hashes
from kvtier.prompts import copy_prompt
from kvtier.v1 import describe_pb2, describe_pb2_grpc, inference_pb2
from worker.errors import RequestDeadlineError
from worker.grid import Grid
from worker.request_desk import RequestDesk, ScopeRuns
from worker.servicer import read_ask

__all__ = ["DESCRIBE_SERVICE", "DescribeServicer"]

DESCRIBE_SERVICE = describe_pb2.DESCRIPTOR.services_by_name["DescribeService"].full_name

RESIDENT_SECONDS_MAX = 30.0
"""How long the engine may take to get between two steps."""

Context = Any


class ResidentCounter(Protocol):
    """What is needed of the engine. Any thread."""

    def count_resident(self, chain: Sequence[BlockHash], told: Callable[[int], None]) -> None: ...


class DescribeServicer(describe_pb2_grpc.DescribeServiceServicer):
    """Names prompts for a worker; `namespace_of` gives that of an adapter, or of none."""

    def __init__(
        self,
        desk: RequestDesk,
        engine: ResidentCounter,
        namespace_of: Callable[[str], Namespace],
        block_bytes: int,
        *,
        whole_units: bool,
        grid: Grid,
    ) -> None:
        """`whole_units`: only these are hits of the engine; on a `grid`, only whole pieces."""
        self._desk = desk
        self._engine = engine
        self._namespace_of = namespace_of
        self._block_bytes = block_bytes
        self._whole_units = whole_units
        self._grid = grid

    async def DescribePrompt(
        self, request: describe_pb2.DescribePromptRequest, context: Context
    ) -> describe_pb2.DescribePromptResponse:
        said = await self._desk.describe(read_ask(_as_generate(request)))
        namespace = self._namespace_of(said.adapter)
        token_ids, block_tokens = said.token_ids, namespace.block_tokens
        count = self._grid.whole((len(token_ids) - 1) // block_tokens)
        reusable = block_chain(namespace, said.scope, token_ids)[:count]
        others = []
        for scope, runs in said.others if request.other_scopes else ():
            await asyncio.sleep(0)  # long prompts take milliseconds each
            chain = block_chain(namespace, scope, token_ids)[:count]
            others.append(_scoped_chain(runs, chain))
        resident = 0
        if not request.names_only:
            resident = self._grid.whole(await self._resident(reusable))
        return describe_pb2.DescribePromptResponse(
            model=said.model,
            namespace_id=namespace.id,
            block_bytes=self._block_bytes,
            block_tokens=block_tokens,
            prompt_tokens=len(token_ids),
            block_hashes=pack_hashes(reusable),
            resident_count=resident,
            whole_units=self._whole_units,
            other_scopes=others,
        )

    async def _resident(self, chain: Sequence[BlockHash]) -> int:
        """Raises ShuttingDownError, EngineFailedError, RequestDeadlineError."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[int] = loop.create_future()

        def settle(count: int) -> None:
            if not answer.done():  # else whoever asked has gone
                answer.set_result(count)

        self._engine.count_resident(chain, lambda n: _tell(loop, settle, n))
        try:
            async with asyncio.timeout(RESIDENT_SECONDS_MAX):
                return await answer
        except TimeoutError:
            raise RequestDeadlineError(
                f"the engine has not answered for {RESIDENT_SECONDS_MAX:g} s, in one long step or"
                " because it failed; ask again, and look into the worker's log"
            ) from None


def _tell(loop: asyncio.AbstractEventLoop, settle: Callable[[int], None], count: int) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(settle, count)


def _scoped_chain(runs: ScopeRuns, chain: Sequence[BlockHash]) -> describe_pb2.ScopedChain:
    message, first = describe_pb2.ScopedChain(block_hashes=pack_hashes(chain)), 0
    for path, end in runs:
        last = len(chain) if end is None else min(end, len(chain))
        if first < last:
            message.runs.add(scope_path=path, block_count=last - first)
            first = last
    return message


def _as_generate(request: describe_pb2.DescribePromptRequest) -> inference_pb2.GenerateRequest:
    """The request whose prompt is described."""
    asked = inference_pb2.GenerateRequest(
        tenant_id=request.tenant_id,
        model=request.model,
        cache_scope=request.cache_scope,
        project_id=request.project_id,
        user_id=request.user_id,
        adapter=request.adapter,
    )
    copy_prompt(request, asked)
    return asked
