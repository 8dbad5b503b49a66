"""A gRPC method handler with something around its function. Pure.

A handler's function is a coroutine or an asynchronous generator, whatever its kind: one that
streams may also write to its context. Who wraps it keeps that form, by which gRPC decides how to
call it.
"""

from collections.abc import Callable
from typing import Any

import grpc

__all__ = ["rewrapped"]


def rewrapped(handler: Any, decode: Any, encode: Any, wrap: Callable[[Any], Any]) -> Any:
    """A handler of the same kind, around `wrap` of the function."""
    if handler.unary_unary is not None:
        return grpc.unary_unary_rpc_method_handler(wrap(handler.unary_unary), decode, encode)
    if handler.unary_stream is not None:
        return grpc.unary_stream_rpc_method_handler(wrap(handler.unary_stream), decode, encode)
    if handler.stream_unary is not None:
        return grpc.stream_unary_rpc_method_handler(wrap(handler.stream_unary), decode, encode)
    return grpc.stream_stream_rpc_method_handler(wrap(handler.stream_stream), decode, encode)
