"""One worker: its channel, and what it serves as it last answered. Event loop; owns both."""

import logging
from typing import Any

import grpc

from kvtier.channels import open_aio_channel
from kvtier.errors import WireError, read_error
from kvtier.v1 import describe_pb2_grpc, inference_pb2_grpc
from kvtier.v1 import inference_pb2 as pb

__all__ = ["Worker"]

log = logging.getLogger(__name__)

POLL_TIMEOUT_SECONDS = 5.0

_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.max_send_message_length", 16 << 20),
    # A host that vanished is found while calls wait on it.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # gRPC waits up to two minutes between attempts to connect; a worker is back much sooner.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


class Worker:
    """One worker, as it last answered."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None) -> None:
        self.address = address
        self._channel = open_aio_channel(address, credentials, _OPTIONS)
        self.stub = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self.describe = describe_pb2_grpc.DescribeServiceStub(self._channel)
        self.model: pb.GetModelResponse | None = None
        """What it serves; None while it does not answer."""
        self.running_count = 0
        self.names: frozenset[str] = frozenset()
        """What a request may call its model; of one that is down, as it last said."""

    @property
    def up(self) -> bool:
        return self.model is not None

    async def poll(self) -> None:
        """Asks what it serves; takes it for down when it does not say."""
        try:
            answer = await self.stub.GetModel(pb.GetModelRequest(), timeout=POLL_TIMEOUT_SECONDS)
        except grpc.RpcError as error:
            self.lost(read_error(error))
            return
        if self.model is None:
            log.info("a worker is up", extra={"worker": self.address, "model": answer.model})
        self.model = answer
        self.names = frozenset(
            (answer.model, *(f"{answer.model}:{name}" for name in answer.adapters))
        )

    def lost(self, wire: WireError) -> None:
        if self.model is not None:
            reason = wire.reason or wire.code.name
            log.warning(
                "a worker is down",
                extra={"worker": self.address, "reason": reason, "said": wire.message},
            )
        self.model = None

    async def close(self) -> None:
        await self._channel.close()
