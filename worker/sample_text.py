"""One sample of a request, as its client sees it: text, token ids, and where it ended.

Invariant: after the sample ended nothing more is delivered; tokens the engine made after a stop
string are counted as undelivered. Owned by one request, on the event loop.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from worker.detokenizer import Decode, Detokenizer
from worker.logprobs import TokenLogprob
from worker.requests import FinishReason
from worker.stop_strings import StopStrings

__all__ = ["LikelyToken", "Sample", "SampleFinished", "TextDelta", "ToldToken"]


@dataclass(frozen=True, slots=True)
class LikelyToken:
    token_id: int
    text: str
    """Of the token alone: U+FFFD where it is part of a character, empty where it is special."""
    logprob: float


@dataclass(frozen=True, slots=True)
class ToldToken:
    """A delivered token, and how likely it and others were."""

    own: LikelyToken
    top: tuple[LikelyToken, ...]
    """Likeliest first."""


@dataclass(frozen=True, slots=True)
class TextDelta:
    sample_index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[ToldToken, ...] = ()
    """Of each of `token_ids`; empty where the request did not ask."""


@dataclass(frozen=True, slots=True)
class SampleFinished:
    sample_index: int
    finish_reason: FinishReason


class Sample:
    """Turns a sample's tokens into deltas."""

    def __init__(self, index: int, decode: Decode, stops: Sequence[str]) -> None:
        self.index = index
        self.finish_reason: FinishReason | None = None
        self.undelivered_tokens = 0
        self._decode = decode
        self._detokenizer = Detokenizer(decode)
        self._stops = StopStrings(stops)

    def push(
        self, token_id: int, logprob: TokenLogprob | None = None
    ) -> list[TextDelta | SampleFinished]:
        """The next token; a `SampleFinished` in the answer means that a stop string ended it."""
        if self.finish_reason is not None:
            self.undelivered_tokens += 1
            return []
        text = self._stops.push(self._detokenizer.push(token_id))
        told = () if logprob is None else (self._told(token_id, logprob),)
        delta = TextDelta(self.index, text, (token_id,), told)
        return [delta, *self._finish(FinishReason.STOP)] if self._stops.matched else [delta]

    def end(self, reason: FinishReason) -> list[TextDelta | SampleFinished]:
        """The engine has no more tokens: delivers what was held back."""
        if self.finish_reason is not None:
            return []
        text = self._stops.push(self._detokenizer.flush())
        text += self._stops.flush()
        rest = [TextDelta(self.index, text, ())] if text else []
        return [*rest, *self._finish(FinishReason.STOP if self._stops.matched else reason)]

    def _told(self, token_id: int, logprob: TokenLogprob) -> ToldToken:
        return ToldToken(
            self._likely(token_id, logprob.logprob),
            tuple(self._likely(token, value) for token, value in logprob.top),
        )

    def _likely(self, token_id: int, logprob: float) -> LikelyToken:
        return LikelyToken(token_id, self._decode([token_id]), logprob)

    def _finish(self, reason: FinishReason) -> list[SampleFinished]:
        self.finish_reason = reason
        return [SampleFinished(self.index, reason)]
