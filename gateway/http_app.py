"""The HTTP face: paths, and what answers each. ASGI, event loop; owns no state.

Every path of the API is there with `/v1` and without, because OpenAI's clients put it into their
base address and DeepSeek's do not.
"""

import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.balances import Balances
from gateway.body_reader import BodyReader
from gateway.errors import MethodNotAllowedError, PathUnknownError
from gateway.exchange import ExchangeLimits
from gateway.front import Front
from gateway.inference import CHAT, COMPLETIONS, Inference
from gateway.metrics import GatewayMetrics
from gateway.status import Refusal, refusal_of
from gateway.workers import Workers
from kvtier.errors import KvtierError

__all__ = ["http_app"]


def http_app(
    front: Front,
    workers: Workers,
    bodies: BodyReader,
    metrics: GatewayMetrics,
    limits: ExchangeLimits,
    request_seconds_max: float,
    balances: Balances | None,
) -> Callable[[Any, Any, Any], Awaitable[None]]:
    """The application; without `balances` there is no path for them. Parts live and end with the
    composition root."""
    pages = _Pages(front, workers, int(time.time()))
    inference: dict[str, Inference] = {}
    routes = [
        Route("/healthz", pages.alive),
        Route("/readyz", pages.ready),
    ]
    for prefix in ("/v1", ""):
        for path, where in ((CHAT, "/chat/completions"), (COMPLETIONS, "/completions")):
            answer = Inference(path, front, workers, bodies, metrics, limits, request_seconds_max)
            inference[f"{prefix}{where}"] = answer
            routes.append(Route(f"{prefix}{where}", answer, methods=["POST"]))
        if balances is not None:
            routes.append(Route(f"{prefix}/user/balance", _balance_page(front, balances)))
        routes.append(Route(f"{prefix}/models", pages.models))
        routes.append(Route(f"{prefix}/models/{{name:path}}", pages.model))
    # No redirects: clients would follow them with the key.
    app = Starlette(
        routes=routes,
        exception_handlers={KvtierError: _refused, HTTPException: _unrouted},
    )
    app.router.redirect_slashes = False

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        """Inference straight: what catches errors of pages would stand around every token."""
        answer = inference.get(scope["path"])
        if answer is not None and scope["method"] == "POST":
            await answer(scope, receive, send)
        else:
            await app(scope, receive, send)

    return serve


class _Pages:
    """The small answers."""

    def __init__(self, front: Front, workers: Workers, since: int) -> None:
        self._front = front
        self._workers = workers
        self._since = since

    async def alive(self, _request: Request) -> Response:
        """The process answers."""
        return JSONResponse({"status": "alive"})

    async def ready(self, _request: Request) -> Response:
        """Requests are taken: a worker is up, and the gateway does not drain."""
        problem = ""
        if self._front.admission.draining:
            problem = "draining"
        elif not self._workers.ready:
            problem = "no worker answers"
        if problem:
            return JSONResponse({"status": "not ready", "problem": problem}, status_code=503)
        return JSONResponse({"status": "ready"})

    async def models(self, request: Request) -> Response:
        self._front.key(request.headers.get("authorization", ""))
        names = sorted(self._workers.models())
        return JSONResponse({"object": "list", "data": [self._fields(name) for name in names]})

    async def model(self, request: Request) -> Response:
        self._front.key(request.headers.get("authorization", ""))
        name = request.path_params["name"]
        if name not in self._workers.models():
            raise self._workers.absent(name)
        return JSONResponse(self._fields(name))

    def _fields(self, name: str) -> dict[str, Any]:
        model = self._workers.models()[name]
        return {
            "id": name,
            "object": "model",
            "created": self._since,
            "owned_by": "kvtier",
            "context_tokens": model.context_tokens,
            "block_tokens": model.block_tokens,
        }


def _balance_page(front: Front, balances: Balances) -> Callable[[Request], Awaitable[Response]]:
    async def balance(request: Request) -> Response:
        key = front.key(request.headers.get("authorization", ""))
        with front.admission.place(key.key_id):
            return JSONResponse(await balances.of(key.path.organisation))

    return balance


def _respond(refusal: Refusal) -> Response:
    headers = {name.decode(): value.decode() for name, value in refusal.headers}
    return JSONResponse(refusal.fields, status_code=refusal.status, headers=headers)


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, KvtierError)
    return _respond(refusal_of(error))


async def _unrouted(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        answer = _respond(refusal_of(MethodNotAllowedError(f"this path takes {allowed}")))
        answer.headers["allow"] = allowed
        return answer
    return _respond(
        refusal_of(PathUnknownError("there is no such path here; docs/gateway.md lists them"))
    )
