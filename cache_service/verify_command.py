"""`kvtier cache verify`: has a running cache check every block on its SSD, and shows how far it is.

Standard output has the outcome alone, a sentence or with --json one object; progress goes to
standard error. Exit status 1 when blocks were bad or the service refused, 130 after Ctrl-C.
"""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kvtier.cli.channel import open_channel
from kvtier.v1 import cache_pb2 as pb
from kvtier.v1 import cache_pb2_grpc

__all__ = ["outcome_data", "outcome_text", "verified"]


def verified(address: str, bytes_per_second: int, console: Console) -> pb.VerifyBlocksResponse:
    """Runs it to its end; the last message. Raises grpc.RpcError, KeyboardInterrupt (then the
    service was told to stop)."""
    with open_channel(address) as channel:
        request = pb.VerifyBlocksRequest(bytes_per_second=bytes_per_second)
        call = cache_pb2_grpc.CacheServiceStub(channel).VerifyBlocks(request)
        with closing(_Cancelling(call)):
            return _shown(call, console)


class _Cancelling:
    """Cancels the call on the way out, which ends a verify that somebody interrupted."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def close(self) -> None:
        self._call.cancel()


def _shown(
    messages: Iterator[pb.VerifyBlocksResponse], console: Console
) -> pb.VerifyBlocksResponse:
    last = pb.VerifyBlocksResponse()
    columns = (
        TextColumn("verifying the SSD"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("blocks, {task.fields[found]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None, found="")
        for last in messages:
            walked = last.progress
            progress.update(
                task,
                completed=walked.checked_count,
                total=walked.total_count,
                found=f"{decimal(walked.checked_bytes)}, {walked.corrupt_count} corrupt",
            )
    return last


def outcome_data(last: pb.VerifyBlocksResponse) -> dict[str, Any]:
    """One flat object; units are in the names."""
    walked = last.progress
    return {
        "done": last.done,
        "checked_count": walked.checked_count,
        "corrupt_count": walked.corrupt_count,
        "unreadable_count": walked.unreadable_count,
        "dropped_count": walked.dropped_count,
        "checked_bytes": walked.checked_bytes,
        "duration_seconds": walked.duration_seconds,
    }


def outcome_text(last: pb.VerifyBlocksResponse) -> str:
    """For people."""
    walked = last.progress
    text = (
        f"{walked.checked_count:,} blocks ({decimal(walked.checked_bytes)}) checked"
        f" in {walked.duration_seconds:,.1f} s: {walked.corrupt_count:,} corrupt,"
        f" {walked.unreadable_count:,} unreadable, {walked.dropped_count:,} dropped"
    )
    return text if last.done else f"{text}; the service ended it early"
