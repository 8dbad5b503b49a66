"""What a replay is asked for, and the quantities that people write."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from cache_service.replay.cache import WriteWhen
from storage.policy.choice import DEFAULT_POLICY

__all__ = [
    "TOKEN_BYTES",
    "Admission",
    "Amount",
    "ReplayOptions",
    "parse_admission",
    "parse_amount",
    "parse_bytes",
]

T = TypeVar("T", int, float)

NEW_BLOCKS_MAX = 12
TOKEN_BYTES = 128 * 1024
"""KV of a token: 32 layers, 8 KV heads of 128, keys and values, 2 bytes each (Llama 3 8B)."""

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}


@dataclass(frozen=True, slots=True)
class Amount:
    """A number of blocks, or a share of the trace's unique blocks."""

    blocks: int = 0
    share: float = 0.0

    def of(self, unique_blocks: int) -> int:
        """In blocks, at least one."""
        return max(1, self.blocks or int(self.share * unique_blocks + 1e-9))


@dataclass(frozen=True, slots=True)
class Admission:
    """`first_new_max` None admits every block."""

    first_new_max: int | None = None

    @property
    def name(self) -> str:
        return "all" if self.first_new_max is None else f"first_new:{self.first_new_max}"


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """`ssd` None is one tier, host memory."""

    policy: str = DEFAULT_POLICY
    host: Amount = field(default=Amount(share=0.1))
    ssd: Amount | None = None
    admission: Admission = Admission()
    write_when: WriteWhen = WriteWhen.LEAVING
    write_budget_bytes: int | None = None
    """A day."""
    block_bytes: int | None = None
    """None is `TOKEN_BYTES` a token."""
    segment_blocks: int | None = None
    """None is single blocks."""


def parse_amount(text: str) -> Amount:
    """`18279` blocks or `10%` of the unique ones. Raises ValueError."""
    text = text.strip().replace(",", "")
    if text.endswith("%"):
        share = _number(float, text[:-1], text) / 100
        if not 0 < share <= 1:
            raise ValueError("a share must be more than 0% and at most 100% of the unique blocks")
        return Amount(share=share)
    blocks = _number(int, text, text)
    if blocks < 1:
        raise ValueError("a capacity must be at least one block")
    return Amount(blocks=blocks)


def _number(parse: Callable[[str], T], text: str, whole: str) -> T:
    try:
        return parse(text)
    except ValueError:
        raise ValueError(f"write 18279 or 10%, not {whole!r}") from None


def parse_admission(text: str) -> Admission:
    """`all`, `first_new` or `first_new:N`. Raises ValueError."""
    rule, _, count = text.strip().replace("-", "_").partition(":")
    if rule == "all" and not count:
        return Admission()
    if rule == "first_new":
        if count and not (count.isascii() and count.isdigit()):
            raise ValueError(f"in first_new:N the N is a number of blocks, not {count!r}")
        new_max = int(count) if count else NEW_BLOCKS_MAX
        if new_max < 1:
            raise ValueError("first_new:N wants at least one block")
        return Admission(new_max)
    raise ValueError(f"there is all, first_new and first_new:N, not {text!r}")


def parse_bytes(text: str) -> int:
    """`64MiB`, `500 GB` or `4096`. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or float(match[1]) == 0:
        raise ValueError(f"{text!r} is not a size; write 64MiB or 500GB")
    return int(float(match[1]) * unit)
