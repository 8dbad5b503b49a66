"""A receipt: one request's entry and all that its amount follows from, signed; and its bytes.

    file     = canonical {"opening":"..","receipt":{...},"signature":".."} LF    or without opening
    signed   = "kvtier-receipt 1" LF canonical receipt LF
    marks    = part of the receipt -> first 8 bytes of SHA-256(part LF canonical value)

Canonical is JSON in ASCII, one line, keys in order, no spaces. Marks prove nothing: they are signed
along, and find what was changed. Described in docs/formats/receipt.md. Invariant: a file is exactly
its canonical bytes. Frozen: it is signed. Pure, any thread.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from billing.line import RatedLine
from billing.money import to_text

__all__ = [
    "BYTES_MAX",
    "FORMAT",
    "ReceiptFormError",
    "canonical",
    "changed_parts",
    "file_bytes",
    "line_fields",
    "marks_of",
    "parsed",
    "signed_bytes",
]

FORMAT = 1

BYTES_MAX = 4 << 20
"""No receipt is larger; one with all that it may have takes a few hundred thousand."""

Data = dict[str, Any]


class ReceiptFormError(ValueError):
    """The bytes are no receipt; `where` says where they stop being one."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(problem)
        self.where = where


def canonical(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=True)


def signed_bytes(receipt: Mapping[str, Any]) -> bytes:
    return f"kvtier-receipt {FORMAT}\n{canonical(receipt)}\n".encode()


def file_bytes(receipt: Mapping[str, Any], signature: bytes, opening: bytes = b"") -> bytes:
    """`opening`: the salt of the prompt's digests; empty: sealed."""
    data = {"receipt": receipt, "signature": signature.hex()}
    if opening:
        data["opening"] = opening.hex()
    return canonical(data).encode() + b"\n"


def parsed(raw: bytes) -> Data:
    """The file's data, whatever it says. Raises ReceiptFormError."""
    if len(raw) > BYTES_MAX:
        raise ReceiptFormError("", f"{len(raw):,} bytes are no receipt: at most {BYTES_MAX:,}")
    try:
        data = json.loads(
            raw.decode("ascii"),
            object_pairs_hook=_object,
            parse_float=_no_number,
            parse_constant=_no_number,
        )
    except UnicodeDecodeError as error:
        raise ReceiptFormError(_byte(error.start), "it is not ASCII there") from None
    except json.JSONDecodeError as error:
        raise ReceiptFormError(_byte(error.pos), f"it is not JSON there: {error.msg}") from None
    except ReceiptFormError:
        raise
    except (ValueError, RecursionError) as error:
        raise ReceiptFormError("", f"it is not a receipt's JSON: {error}") from None
    if not isinstance(data, dict):
        raise ReceiptFormError(_byte(0), "it is not a JSON object")
    made = canonical(data).encode() + b"\n"
    if made != raw:
        same = next((i for i, (a, b) in enumerate(zip(made, raw, strict=False)) if a != b), None)
        at = min(len(made), len(raw)) if same is None else same
        raise ReceiptFormError(_byte(at), "from there on it is not written as receipts are")
    return data


def marks_of(receipt: Mapping[str, Any]) -> dict[str, str]:
    """By part, of everything but the marks themselves."""
    return {
        path: hashlib.sha256(f"{path}\n{canonical(value)}".encode()).hexdigest()[:16]
        for path, value in _parts(receipt)
    }


def changed_parts(receipt: Mapping[str, Any]) -> list[str]:
    """Parts that are not what their marks say, or have none, or are gone."""
    made, said = marks_of(receipt), receipt.get("marks")
    if not isinstance(said, dict):
        return ["marks"]
    return sorted(path for path in made.keys() | said.keys() if made.get(path) != said.get(path))


_OBJECTS = ("", "entry", "event", "event.proof")
"""Each of their keys is a part, as are those of a price version."""

_LISTS = ("corrections", "event.proof.runs", "keys", "lines", "price_versions")
"""Each of their items is a part, or has parts."""


def _parts(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    version = path.startswith("price_versions[") and path.endswith("]")
    if isinstance(value, dict) and value and (path in _OBJECTS or version):
        for key, each in value.items():
            name = f"{path}.{key}" if path else key
            if name != "marks":
                yield from _parts(each, name)
    elif isinstance(value, list) and value and path in _LISTS:
        for index, each in enumerate(value):
            yield from _parts(each, f"{path}[{index}]")
    else:
        yield path, value


def line_fields(line: RatedLine) -> Data:
    """A line as receipts have it."""
    key = line.key
    return {
        "amount": to_text(line.amount),
        "per": key.per,
        "price": to_text(key.unit_price),
        "quantity": line.quantity,
        "rule": key.rule,
        "token_class": key.meter,
        "ttl_class": key.ttl_class,
    }


def _object(pairs: Sequence[tuple[str, Any]]) -> Data:
    for (key, _), (following, _) in pairwise(pairs):
        if key == following:
            raise ReceiptFormError(key, "is there twice")
        if key > following:
            raise ReceiptFormError(f"{key}, {following}", "are keys that do not follow each other")
    return dict(pairs)


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is not a whole number")


def _byte(index: int) -> str:
    return f"byte {index + 1:,}"
