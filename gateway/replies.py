"""A worker's answer in the shapes of OpenAI and DeepSeek. Pure but for the clock; one request each.

Invariants: text, tokens and usage are the worker's own; `prompt_cache_hit_tokens` +
`prompt_cache_miss_tokens` = `prompt_tokens`, as the ledger has them; the id ends in the request's
id, by which `kvtier usage show` finds its entry.
"""

import time
from collections.abc import Iterable, Iterator
from typing import Any

from kvtier.v1 import inference_pb2 as pb
from kvtier.v1 import usage_pb2

__all__ = ["ChatReply", "CompletionReply", "Reply", "usage_fields"]

Fields = dict[str, Any]

_FINISH = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length"}


def usage_fields(tokens: usage_pb2.TokenUsage) -> Fields:
    """In both shapes at once."""
    return {
        "prompt_tokens": tokens.prompt_tokens,
        "completion_tokens": tokens.completion_tokens,
        "total_tokens": tokens.prompt_tokens + tokens.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": tokens.hit_tokens},
        "prompt_cache_hit_tokens": tokens.hit_tokens,
        "prompt_cache_miss_tokens": tokens.miss_tokens,
    }


class Reply:
    """Takes the worker's messages in their order; makes chunks of a stream, or the whole."""

    id_prefix = ""
    whole_object = ""
    chunk_object = ""

    def __init__(self, samples: int, *, tells_usage: bool, service_class: str) -> None:
        self._tells_usage = tells_usage
        self._service_class = service_class
        self._created = int(time.time())
        self._head: Fields = {}
        self._samples = samples
        self._texts: list[list[str]] = []
        self._told: list[list[pb.TokenLogprob]] = []
        self._ends: list[str | None] = []
        self._began = [False] * samples
        self.request_id = ""
        self.usage: usage_pb2.TokenUsage | None = None
        """Once the worker said it."""

    def started(self, started: pb.GenerateStarted) -> None:
        """The first message."""
        self.request_id = started.request_id
        self._texts = [[] for _ in range(self._samples)]
        self._told = [[] for _ in range(self._samples)]
        self._ends = [None] * self._samples
        self._head = {
            "id": f"{self.id_prefix}{started.request_id}",
            "object": self.chunk_object,
            "created": self._created,
            "model": started.model,
            "system_fingerprint": None,
        }
        if self._service_class:
            self._head["service_tier"] = self._service_class

    def chunks(self, message: pb.GenerateResponse) -> Iterator[Fields]:
        """What a stream says of `message`."""
        match message.WhichOneof("event"):
            case "started":
                self.started(message.started)
            case "delta" if message.delta.text or message.delta.logprobs:
                delta = message.delta
                yield self._chunk(self._delta(delta.sample_index, delta.text, delta.logprobs))
            case "sample_end":
                end = message.sample_end
                yield self._chunk(self._end(end.sample_index, _FINISH[end.finish_reason]))
            case "usage":
                self.usage = message.usage.tokens
                if self._tells_usage:
                    yield {**self._head, "choices": [], "usage": usage_fields(self.usage)}

    def collect(self, message: pb.GenerateResponse) -> None:
        """Takes `message` in for `whole`."""
        match message.WhichOneof("event"):
            case "started":
                self.started(message.started)
            case "delta":
                self._texts[message.delta.sample_index].append(message.delta.text)
                self._told[message.delta.sample_index].extend(message.delta.logprobs)
            case "sample_end":
                end = message.sample_end
                self._ends[end.sample_index] = _FINISH[end.finish_reason]
            case "usage":
                self.usage = message.usage.tokens

    def whole(self, logprobs: bool) -> Fields:
        """REQUIRES: the worker's answer ended well."""
        assert self.usage is not None
        choices = [
            self._choice(
                index, "".join(self._texts[index]), self._told[index] if logprobs else None
            )
            for index in range(len(self._texts))
        ]
        head = self._head | {"object": self.whole_object}
        return {**head, "choices": choices, "usage": usage_fields(self.usage)}

    def _chunk(self, choice: Fields) -> Fields:
        chunk = {**self._head, "choices": [choice]}
        if self._tells_usage:
            chunk["usage"] = None
        return chunk

    def _first(self, index: int) -> bool:
        first, self._began[index] = not self._began[index], True
        return first

    def _delta(self, index: int, text: str, told: Iterable[pb.TokenLogprob]) -> Fields:
        raise NotImplementedError

    def _end(self, index: int, finish: str) -> Fields:
        raise NotImplementedError

    def _choice(self, index: int, text: str, told: list[pb.TokenLogprob] | None) -> Fields:
        raise NotImplementedError


class ChatReply(Reply):
    id_prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def _delta(self, index: int, text: str, told: Iterable[pb.TokenLogprob]) -> Fields:
        said = _chat_logprobs(told)
        delta = {"role": "assistant", "content": text} if self._first(index) else {"content": text}
        logprobs = said if said["content"] else None
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}

    def _end(self, index: int, finish: str) -> Fields:
        delta = {"role": "assistant", "content": ""} if self._first(index) else {}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}

    def _choice(self, index: int, text: str, told: list[pb.TokenLogprob] | None) -> Fields:
        return {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None if told is None else _chat_logprobs(told),
            "finish_reason": self._ends[index],
        }


class CompletionReply(Reply):
    id_prefix = "cmpl-"
    whole_object = chunk_object = "text_completion"

    def __init__(self, samples: int, *, tells_usage: bool, service_class: str) -> None:
        super().__init__(samples, tells_usage=tells_usage, service_class=service_class)
        self._offsets = [0] * samples

    def _delta(self, index: int, text: str, told: Iterable[pb.TokenLogprob]) -> Fields:
        logprobs = self._logprobs(index, list(told))
        said = logprobs if logprobs["tokens"] else None
        return {"index": index, "text": text, "logprobs": said, "finish_reason": None}

    def _end(self, index: int, finish: str) -> Fields:
        return {"index": index, "text": "", "logprobs": None, "finish_reason": finish}

    def _choice(self, index: int, text: str, told: list[pb.TokenLogprob] | None) -> Fields:
        return {
            "index": index,
            "text": text,
            "logprobs": None if told is None else self._logprobs(index, told),
            "finish_reason": self._ends[index],
        }

    def _logprobs(self, index: int, told: list[pb.TokenLogprob]) -> Fields:
        offsets = []
        for each in told:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(each.text)
        return {
            "tokens": [each.text for each in told],
            "token_logprobs": [each.logprob for each in told],
            "top_logprobs": [{top.text: top.logprob for top in each.top} for each in told],
            "text_offset": offsets,
        }


def _chat_logprobs(told: Iterable[pb.TokenLogprob]) -> Fields:
    content = [{**_token(each), "top_logprobs": [_token(top) for top in each.top]} for each in told]
    return {"content": content, "refusal": None}


def _token(said: pb.TokenLogprob | pb.TopLogprob) -> Fields:
    """The bytes of a token that is a part of a character are unknown: its text is U+FFFD."""
    known = "\ufffd" not in said.text
    return {
        "token": said.text,
        "logprob": said.logprob,
        "bytes": list(said.text.encode()) if known else None,
    }
