"""Bytes of the usage journal, as drawn in `docs/formats/usage_journal.md`. Pure, any thread.

Invariant: `decode(encode(r)) == r`, and a line in which any bit is flipped does not decode. All
file names of the journal are spelled here.
"""

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from kvtier.blocks import Tier
from worker.usage_event import (
    AdmittedRequest,
    ChargedTokens,
    PromptProof,
    ProvenRun,
    UsageEnd,
    UsageEvent,
)

__all__ = [
    "FORMAT_VERSION",
    "BadLineError",
    "Begin",
    "End",
    "Record",
    "SegmentHead",
    "begins_request",
    "damaged_path",
    "dead_letters_path",
    "decode",
    "decode_acknowledged",
    "delivered_path",
    "encode",
    "encode_acknowledged",
    "end_fields",
    "first_sequence_of",
    "lock_path",
    "segment_path",
    "segment_paths",
]

FORMAT_VERSION = 4
"""Frozen: stored in every segment. Ends of format 1 say nothing of cache writes, requests of format
2 nothing of projects and users, those of format 3 nothing of keys, sessions, classes, leases and
proofs."""
DELIVERED_FORMAT = 1
"""Of the `delivered` file."""

LINE_BYTES_MAX = 131_072
"""Half of it before format 4. A thousand leases and the most digests fit."""
CHECKSUM_DIGITS = 16

_PREFIX, _SUFFIX = "usage-", ".journal"
_TIERS = (("gpu", Tier.GPU), ("host", Tier.HOST), ("ssd", Tier.SSD), ("shared", Tier.SHARED))
_PLACES: dict[Tier | None, str] = {**{tier: name for name, tier in _TIERS}, None: "computed"}


class BadLineError(ValueError):
    """The bytes are no record of this format: torn, flipped or foreign."""


@dataclass(frozen=True, slots=True)
class SegmentHead:
    """First record of every segment."""

    format: int = FORMAT_VERSION


@dataclass(frozen=True, slots=True)
class Begin:
    """The engine took the request."""

    request: AdmittedRequest


@dataclass(frozen=True, slots=True)
class End:
    """The request's one usage event."""

    event: UsageEvent


Record = SegmentHead | Begin | End


def encode(sequence: int, record: Record) -> bytes:
    """One line with its newline. Raises ValueError when it would be too long."""
    return _line({"sequence": sequence, **_fields(record)})


def decode(line: bytes) -> tuple[int, Record]:
    """Sequence and record of a line without its newline. Raises BadLineError."""
    fields = _checked(line)
    try:
        return _integer(fields["sequence"]), _record(fields)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadLineError(f"a record with keys missing or wrong: {error}") from None


def begins_request(raw: bytes, start: int) -> bool:
    """Whether the line at `start` is a begin, by a look at its first keys; it may be damaged."""
    return raw.find(_BEGINS, start, start + _BEGINS_WITHIN) >= 0


_BEGINS = b',"type":"begin",'
_BEGINS_WITHIN = CHECKSUM_DIGITS + len(b' {"sequence":') + 20 + len(_BEGINS)


def encode_acknowledged(sequence: int) -> bytes:
    """The content of the `delivered` file."""
    return _line({"format": DELIVERED_FORMAT, "acknowledged": sequence})


def decode_acknowledged(raw: bytes) -> int:
    """Inverse of `encode_acknowledged`. Raises BadLineError."""
    fields = _checked(raw.removesuffix(b"\n"))
    if fields.get("format") != DELIVERED_FORMAT:
        raise BadLineError("a delivered file of another format")
    try:
        return _integer(fields["acknowledged"])
    except (KeyError, ValueError) as error:
        raise BadLineError(str(error)) from None


def end_fields(event: UsageEvent) -> dict[str, Any]:
    """The keys of an `end` record, also those of a dead letter."""
    hits = event.tokens.hit_tokens_by_tier
    leases = {} if event.lease_ids is None else {"leases": event.lease_ids}
    proof = {} if event.proof is None else {"proof": _proof_fields(event.proof)}
    return {
        "request": _request_fields(event.request),
        "schema_version": event.schema_version,
        "end_time_ns": event.end_time_ns,
        "end": int(event.end),
        "hit_tokens": {name: hits.get(tier, 0) for name, tier in _TIERS},
        "miss_tokens": event.tokens.miss_tokens,
        "completion_tokens": event.tokens.completion_tokens,
        "cache_write": {
            "tokens": event.tokens.cache_write_tokens,
            "ttl_class": event.tokens.cache_write_ttl_class,
        },
        "ttft_ns": event.ttft_ns,
        **leases,
        **proof,
    }


def segment_path(directory: Path, first_sequence: int) -> Path:
    return directory / f"{_PREFIX}{first_sequence:020d}{_SUFFIX}"


def segment_paths(directory: Path) -> list[Path]:
    """All segments, oldest first."""
    return sorted(
        path
        for path in directory.iterdir()
        if path.name.startswith(_PREFIX)
        and path.name.endswith(_SUFFIX)
        and path.name[len(_PREFIX) : -len(_SUFFIX)].isdigit()
    )


def first_sequence_of(segment: Path) -> int:
    return int(segment.name[len(_PREFIX) : -len(_SUFFIX)])


def damaged_path(directory: Path, segment: Path, offset: int) -> Path:
    return directory / f"damaged-{first_sequence_of(segment):020d}-{offset}.bin"


def delivered_path(directory: Path) -> Path:
    return directory / "delivered"


def dead_letters_path(directory: Path) -> Path:
    return directory / "dead_letters.jsonl"


def lock_path(directory: Path) -> Path:
    return directory / "lock"


def _line(fields: dict[str, Any]) -> bytes:
    body = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    line = b"%016x %b\n" % (xxhash.xxh3_64_intdigest(body), body)
    if len(line) > LINE_BYTES_MAX:
        raise ValueError(f"a journal line of {len(line)} bytes; at most {LINE_BYTES_MAX}")
    return line


def _checked(line: bytes) -> dict[str, Any]:
    checksum, body = line[:CHECKSUM_DIGITS], line[CHECKSUM_DIGITS + 1 :]
    if line[CHECKSUM_DIGITS : CHECKSUM_DIGITS + 1] != b" ":
        raise BadLineError("no checksum")
    if checksum != b"%016x" % xxhash.xxh3_64_intdigest(body):
        raise BadLineError("the checksum does not hold")
    try:
        fields = json.loads(body)
    except ValueError:
        raise BadLineError("not JSON") from None
    if not isinstance(fields, dict):
        raise BadLineError("not a JSON object")
    return fields


def _fields(record: Record) -> dict[str, Any]:
    match record:
        case SegmentHead(version):
            return {"type": "segment", "format": version}
        case Begin(request):
            return {"type": "begin", "request": _request_fields(request)}
        case End(event):
            return {"type": "end", **end_fields(event)}


def _request_fields(request: AdmittedRequest) -> dict[str, Any]:
    """Without what nobody noted: a request of an older worker stays one."""
    # Spelled out: dataclasses.asdict takes longer than all the rest of a line.
    fields: dict[str, Any] = {
        "request_id": request.request_id,
        "tenant_id": request.tenant_id,
        "model": request.model,
        "node": request.node,
        "client_request_id": request.client_request_id,
        "start_time_ns": request.start_time_ns,
    }
    for name in _NOTED_LATER:
        said = getattr(request, name)
        if said is not None:
            fields[name] = said
    return fields


def _proof_fields(proof: PromptProof) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "scheme": proof.scheme,
        "block_tokens": proof.block_tokens,
        "commitment": proof.commitment.hex(),
        "namespace_mark": proof.namespace_mark.hex(),
        "runs": [
            {**{_PLACES[place]: n for place, n in run.blocks.items()}, "digest": run.digest.hex()}
            for run in proof.runs
        ],
    }
    if proof.digest_blocks:
        fields["digest_blocks"] = proof.digest_blocks
        fields["digests"] = base64.b64encode(proof.digests).decode()
    return fields


_NOTED_LATER = ("project_id", "user_id", "key_id", "session_id", "service_class")


def _record(fields: dict[str, Any]) -> Record:
    match fields["type"]:
        case "segment":
            return SegmentHead(_integer(fields["format"]))
        case "begin":
            return Begin(AdmittedRequest(**fields["request"]))
        case "end":
            return End(_event(fields))
        case unknown:
            raise ValueError(f"type {unknown!r}")


def _event(fields: dict[str, Any]) -> UsageEvent:
    hits = fields["hit_tokens"]
    ttft_ns = fields["ttft_ns"]
    written = fields.get("cache_write", {"tokens": 0, "ttl_class": ""})
    return UsageEvent(
        request=AdmittedRequest(**fields["request"]),
        end_time_ns=_integer(fields["end_time_ns"]),
        end=UsageEnd(fields["end"]),
        tokens=ChargedTokens(
            hit_tokens_by_tier={tier: hits[name] for name, tier in _TIERS if hits[name]},
            miss_tokens=_integer(fields["miss_tokens"]),
            completion_tokens=_integer(fields["completion_tokens"]),
            cache_write_tokens=_integer(written["tokens"]),
            cache_write_ttl_class=_text(written["ttl_class"]),
        ),
        ttft_ns=None if ttft_ns is None else _integer(ttft_ns),
        lease_ids=tuple(map(_text, fields["leases"])) if "leases" in fields else None,
        schema_version=_integer(fields["schema_version"]),
        proof=_proof(fields["proof"]) if "proof" in fields else None,
    )


def _proof(fields: dict[str, Any]) -> PromptProof:
    return PromptProof(
        scheme=_integer(fields["scheme"]),
        block_tokens=_integer(fields["block_tokens"]),
        commitment=bytes.fromhex(fields["commitment"]),
        namespace_mark=bytes.fromhex(fields["namespace_mark"]),
        runs=tuple(
            ProvenRun(
                {place: _integer(run[name]) for place, name in _PLACES.items() if name in run},
                bytes.fromhex(run["digest"]),
            )
            for run in fields["runs"]
        ),
        digest_blocks=_integer(fields.get("digest_blocks", 0)),
        digests=base64.b64decode(fields.get("digests", ""), validate=True),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} where a text belongs")
    return value


def _integer(value: object) -> int:
    if type(value) is not int:
        raise ValueError(f"{value!r} where an integer belongs")
    return value
