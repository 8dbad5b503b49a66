"""What a worker says of one request, held to the contract before anybody is told.

    started -> (delta | sample_end)* -> usage -> the end

A worker that breaks it would be told on as an answer that looks whole, as another sample's text, or
as a header of its choice. Kinds of messages that are not known here pass. Pure but for its state;
one object an attempt.
"""

from kvtier.v1 import inference_pb2 as pb

__all__ = ["NonsenseError", "Words"]

REQUEST_ID_CHARACTERS_MAX = 128

_FINISHES = (pb.FINISH_REASON_STOP, pb.FINISH_REASON_LENGTH)


class NonsenseError(Exception):
    """What the worker said is no answer. For the log."""


class Words:
    def __init__(self, sample_count: int) -> None:
        self._samples = max(1, sample_count)
        self._started = False
        self._open = set(range(self._samples))
        self._told_usage = False

    def heard(self, said: pb.GenerateResponse) -> str | None:
        """The kind of a message. Raises NonsenseError."""
        kind: str | None = said.WhichOneof("event")
        if self._started == (kind == "started") or self._told_usage:
            raise NonsenseError(f"{kind} out of its turn")
        if kind == "delta":
            self._check_open(said.delta.sample_index)
        elif kind == "started":
            self._check_name(said.started.request_id)
            self._started = True
        elif kind == "sample_end":
            self._check_open(said.sample_end.sample_index)
            if said.sample_end.finish_reason not in _FINISHES:
                raise NonsenseError(f"finish reason {said.sample_end.finish_reason}")
            self._open.discard(said.sample_end.sample_index)
        elif kind == "usage":
            self._told_usage = True
        return kind

    def ended(self) -> None:
        """It says that all went well. Raises NonsenseError."""
        if not self._told_usage or self._open:
            raise NonsenseError("a good end without usage, or of an open sample")

    def _check_open(self, sample_index: int) -> None:
        if sample_index not in self._open:
            raise NonsenseError(f"something of sample {sample_index}")

    def _check_name(self, name: str) -> None:
        good = name.isascii() and name.isprintable() and " " not in name
        if not good or not 0 < len(name) <= REQUEST_ID_CHARACTERS_MAX:
            raise NonsenseError("a request id that cannot be one")
