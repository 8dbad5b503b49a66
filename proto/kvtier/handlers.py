"""A gRPC method handler with something around its function.

A handler's function is a coroutine or an asynchronous generator, whatever its kind: one that
streams may also write to its context. Who wraps it keeps that form, by which gRPC decides how to
call it.
"""

import inspect
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

__all__ = ["WrappingInterceptor", "rewrapped"]


class WrappingInterceptor(grpc.aio.ServerInterceptor):
    """Puts something around every handler, once a method. On the server's event loop."""

    def __init__(self) -> None:
        self._wrapped: dict[str, tuple[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = str(handler_call_details.method)
        known = self._wrapped.get(method)
        if known is None or known[0] is not handler:
            known = self._wrapped[method] = (handler, self._rewrapped(handler, method))
        return known[1]

    def _rewrapped(self, handler: Any, method: str) -> Any:
        def around(call: Any) -> Any:
            generates = inspect.isasyncgenfunction(call)
            return self._stream(call, method) if generates else self._unary(call, method)

        decode = self._decoder(handler.request_deserializer)
        return rewrapped(handler, decode, handler.response_serializer, around)

    def _decoder(self, decode: Any) -> Any:
        return decode

    @abstractmethod
    def _unary(self, call: Any, method: str) -> Any:
        """What is called instead of a coroutine function."""

    @abstractmethod
    def _stream(self, call: Any, method: str) -> Any:
        """What is called instead of an asynchronous generator."""


def rewrapped(handler: Any, decode: Any, encode: Any, wrap: Callable[[Any], Any]) -> Any:
    """A handler of the same kind, around `wrap` of the function."""
    if handler.unary_unary is not None:
        return grpc.unary_unary_rpc_method_handler(wrap(handler.unary_unary), decode, encode)
    if handler.unary_stream is not None:
        return grpc.unary_stream_rpc_method_handler(wrap(handler.unary_stream), decode, encode)
    if handler.stream_unary is not None:
        return grpc.stream_unary_rpc_method_handler(wrap(handler.stream_unary), decode, encode)
    return grpc.stream_stream_rpc_method_handler(wrap(handler.stream_stream), decode, encode)
