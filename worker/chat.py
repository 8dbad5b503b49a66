"""Text and chats -> token ids, with the checkpoint's own tokenizer and chat template.

Invariant: the same prompt gives the same tokens in every process, and a chat's earlier turns give
the same leading tokens in its later ones as far as the template allows; that is what hits rest on.
Encoding long text takes long, so callers run it on a bounded executor. Only the tokenizer's Rust
part is called there: it releases the GIL and changes nothing, where the Python wrapper sets padding
and truncation on every call and must not be shared between threads.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.errors import CheckpointError, InvalidMessagesError

__all__ = ["ROLES", "ChatMessage", "PromptEncoder", "load_prompt_encoder"]

ROLES = frozenset({"system", "user", "assistant"})

VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


@dataclass(frozen=True, slots=True)
class ChatMessage:
    role: str
    content: str


class PromptEncoder:
    """A checkpoint's tokenizer, seen as what a prompt needs."""

    def __init__(self, tokenizer: Any) -> None:
        """`tokenizer`: a Hugging Face fast tokenizer."""
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._token_length_max = max((len(token) for token in tokenizer.get_vocab()), default=1)

    def text_tokens(self, text: str) -> tuple[int, ...]:
        """Tokens of plain text, with what the model wants before it (a begin token, if any)."""
        return self._encode(text, add_special_tokens=True)

    def chat_tokens(
        self, messages: Sequence[ChatMessage], *, answer: bool = True
    ) -> tuple[int, ...]:
        """Tokens of a chat; with `answer` up to where the assistant begins to speak.

        Raises InvalidMessagesError for an unknown role or what the template refuses.
        """
        check_roles(messages)
        if not self._tokenizer.chat_template:
            raise InvalidMessagesError("this model has no chat template; send `text` instead")
        try:
            rendered = self._tokenizer.apply_chat_template(
                [{"role": m.role, "content": m.content} for m in messages],
                add_generation_prompt=answer,
                tokenize=False,
            )
        except Exception as error:
            # Templates are the checkpoint's own programs: what they raise has no common type.
            raise InvalidMessagesError(
                f"the model's chat template refuses these messages: {error}"
            ) from None
        return self._encode(rendered, add_special_tokens=False)

    def least_tokens(self, text: str) -> int:
        """No tokenization of `text` is shorter; cheap, unlike tokenizing it."""
        return -(-len(text) // self._token_length_max)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of tokens, special ones left out. Bytes that are no UTF-8 become U+FFFD."""
        text: str = self._backend.decode(list(token_ids), skip_special_tokens=True)
        return text

    def _encode(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        # The batch call releases the GIL, the single one does not.
        batch = self._backend.encode_batch([text], add_special_tokens=add_special_tokens)
        return tuple(batch[0].ids)


def check_roles(messages: Sequence[ChatMessage]) -> None:
    """Raises InvalidMessagesError."""
    if not messages:
        raise InvalidMessagesError("a chat needs at least one message")
    for index, message in enumerate(messages):
        if message.role not in ROLES:
            raise InvalidMessagesError(
                f"message {index} has an unknown role; use one of {', '.join(sorted(ROLES))}",
                message_index=index,
            )


def load_prompt_encoder(directory: Path) -> PromptEncoder:
    """The tokenizer of the checkpoint in `directory`; never asks the network.

    Raises CheckpointError.
    """
    if not any((directory / name).is_file() for name in VOCABULARY_FILES):
        # The loader would make an empty tokenizer of the model's kind, and not say so.
        raise CheckpointError(f"{directory} has no tokenizer ({', '.join(VOCABULARY_FILES)})")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:
        # The loader's failures are of many types; each means the same here.
        raise CheckpointError(
            f"{directory} has no tokenizer that loads: {str(error).splitlines()[0]}"
        ) from None
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise CheckpointError(
            f"the tokenizer of {directory} has no fast form; save it with a tokenizer.json"
        )
    return PromptEncoder(tokenizer)
