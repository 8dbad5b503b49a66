"""`python -m kvtier.cli.health ADDRESS`: exit status 0 when the service there says SERVING.

A container's health check runs this every few seconds for as long as the container lives, so it
imports what it needs and no more: on a Unix socket half a second of a processor less each time.
"""

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

__all__ = ["serving"]

SECONDS_MAX = 3.0


def serving(address: str) -> bool:
    """Whether a gRPC server at `address` answers its health check with SERVING."""
    with _channel(address) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=SECONDS_MAX
            )
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _channel(address: str) -> grpc.Channel:
    if address.startswith("unix:"):  # TLS is of the network alone
        return grpc.insecure_channel(address)
    from kvtier.cli.channel import open_channel

    return open_channel(address)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m kvtier.cli.health HOST:PORT|unix:PATH")
    sys.exit(0 if serving(sys.argv[1]) else 1)
