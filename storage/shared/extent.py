"""An extent's bytes: a head, a table of its blocks, their payloads.

    head 256 bytes | table: parent, a row a block, owners | payload | payload | ...
                   |<----------------- sealed, where there is a key ------------------->|

Invariant: `unpack` fills what it was given only with payloads that match the checksum of a block
that was asked for, under that block's name, in this namespace and generation; or it raises, and
what the memory holds is not to be used. Nothing that an engine returns can make it take more memory
than it was given. Frozen: it is in stores (docs/formats/shared-extent.md). Pure, any thread; the
interpreter lock is free over payloads.
"""

import secrets
import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import xxhash
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from kvtier.keys import HASH_BYTES, BlockHash, NamespaceId, payload_checksum
from storage.shared.sealing import Sealing
from storage.tier import NEVER

__all__ = [
    "BadExtentError",
    "ExtentBlock",
    "ExtentHead",
    "OtherKeyError",
    "extent_bytes",
    "pack",
    "read_owners",
    "unpack",
]

HEAD_BYTES = 256
FORMAT = 1
OWNER_BYTES_MAX = 1024

_MAGIC = b"KVTSHARE"
_NONCE_BYTES = 12
_TAG_BYTES = 16
_SEALED = 1
_UNIT_END = 1
_HEAD = struct.Struct("<8sIIQIIQ32s32s8s16s12s16s")
_CHECK = struct.Struct("<QQ")
"""Of the table, where it is in clear; of the head before this."""
_ROW = struct.Struct("<32sQIHH")
_COUNT = struct.Struct("<H")


class BadExtentError(Exception):
    """Not what was written under this name: broken, foreign or forged. Stays inside the tier."""


class OtherKeyError(Exception):
    """Sealed with a key that is not here, or sealed where no key is, or in clear where one is."""


class ExtentHead(NamedTuple):
    """What an extent is. The reader says what it expects, the writer what it writes."""

    namespace_id: NamespaceId
    generation: int
    block_bytes: int


class ExtentBlock(NamedTuple):
    """A block as the extent's table has it."""

    block_hash: BlockHash
    checksum: int
    """`kvtier.keys.payload_checksum` of its payload."""
    expire_second: int = NEVER
    """Unix second from which on it must not be used."""
    unit_end: bool = False
    owner: str = ""
    """Path of the scope that it is in."""


def extent_bytes(block_count: int, block_bytes: int) -> int:
    """What an extent takes at most; a longer object is none of ours."""
    owners = _COUNT.size + block_count * (_COUNT.size + OWNER_BYTES_MAX)
    return HEAD_BYTES + HASH_BYTES + block_count * (_ROW.size + block_bytes) + owners


def pack(
    head: ExtentHead,
    parent: BlockHash,
    blocks: Sequence[ExtentBlock],
    payloads: Sequence[memoryview],
    sealing: Sealing | None,
) -> memoryview:
    """The object. REQUIRES: payloads match their checksums, and are of `block_bytes`."""
    table = _table(parent, blocks)
    begin = HEAD_BYTES + len(table)
    whole = bytearray(begin + len(blocks) * head.block_bytes)
    view = memoryview(whole)
    view[HEAD_BYTES:begin] = table
    for number, payload in enumerate(payloads):
        at = begin + number * head.block_bytes
        view[at : at + head.block_bytes] = payload
    name = blocks[-1].block_hash
    if sealing is None:
        fields = _head(head, len(blocks), len(table), name, 0, bytes(8), bytes(16), bytes(12))
        _put_head(view, fields, bytes(_TAG_BYTES), table)
        return view
    salt, nonce = sealing.new_salt(), secrets.token_bytes(_NONCE_BYTES)
    key = sealing.extent_key(sealing.fingerprint, salt)
    assert key is not None
    fields = _head(head, len(blocks), len(table), name, _SEALED, sealing.fingerprint, salt, nonce)
    step = Cipher(algorithms.AES(key), modes.GCM(nonce)).encryptor()
    step.authenticate_additional_data(fields)
    step.update_into(view[HEAD_BYTES:], view[HEAD_BYTES:])
    step.finalize()
    _put_head(view, fields, step.tag, b"")
    return view


def read_owners(
    raw: memoryview, head: ExtentHead, name: BlockHash, block_count: int, sealing: Sealing | None
) -> list[str]:
    """Whose each block is, as the table says before it was checked: to plan by, not to believe.

    `name`: of the last block. Raises BadExtentError, OtherKeyError.
    """
    table, _, _ = _open(raw, head, name, block_count, sealing)
    return [block.owner for block in _read_table(table, block_count)]


def unpack(
    raw: memoryview,
    head: ExtentHead,
    chain: Mapping[int, BlockHash],
    block_count: int,
    into: Mapping[int, memoryview],
    sealing: Sealing | None,
) -> list[ExtentBlock]:
    """Fills `into[i]`, exactly `block_bytes` long, with block i of the extent; the whole table.

    `chain`: the names that are known, by position in the extent, the last one among them, and
    those of `into`; at -1 the one before it, which is NO_PARENT for a chain's first extent.
    Raises BadExtentError, OtherKeyError.
    """
    table, begin, step = _open(raw, head, chain[block_count - 1], block_count, sealing)
    blocks = _read_payloads(raw[begin:], head.block_bytes, block_count, into, step, table)
    if chain.get(-1, table[:HASH_BYTES]) != table[:HASH_BYTES]:
        raise BadExtentError("it continues another block")
    for position, block_hash in chain.items():
        if position >= 0 and blocks[position].block_hash != block_hash:
            raise BadExtentError("it holds other blocks")
    for position, target in into.items():
        block = blocks[position]
        if payload_checksum(block.block_hash, target) != block.checksum:
            raise BadExtentError("a payload does not match its checksum")
    return blocks


def _open(
    raw: memoryview, head: ExtentHead, name: BlockHash, block_count: int, sealing: Sealing | None
) -> tuple[bytes, int, CipherContext | None]:
    """The table, where the payloads begin, and what opens them if they are sealed: until its tag
    was checked the table says what anybody may have written."""
    found, table_bytes, sealed = _read_head(raw, head, name, block_count)
    if sealed is not (sealing is not None):
        raise OtherKeyError("sealed, and no key is set" if sealed else "in clear, and a key is set")
    begin = HEAD_BYTES + table_bytes
    if sealing is None:
        table = bytes(raw[HEAD_BYTES:begin])
        if xxhash.xxh3_64_intdigest(table) != found.table_check:
            raise BadExtentError("the table does not match its checksum")
        return table, begin, None
    key = sealing.extent_key(found.fingerprint, found.salt)
    if key is None:
        raise OtherKeyError(f"sealed with key {found.fingerprint.hex()}")
    step = Cipher(algorithms.AES(key), modes.GCM(found.nonce, found.tag)).decryptor()
    step.authenticate_additional_data(found.fields)
    return step.update(raw[HEAD_BYTES:begin]), begin, step


# -- head ------------------------------------------------------------------------------------------


class _Found(NamedTuple):
    fields: bytes
    fingerprint: bytes
    salt: bytes
    nonce: bytes
    tag: bytes
    table_check: int


def _head(
    head: ExtentHead,
    block_count: int,
    table_bytes: int,
    name: bytes,
    flags: int,
    fingerprint: bytes,
    salt: bytes,
    nonce: bytes,
) -> bytes:
    """With a tag of zeros: so it is bound."""
    return _HEAD.pack(
        _MAGIC,
        FORMAT,
        flags,
        head.generation,
        block_count,
        table_bytes,
        head.block_bytes,
        head.namespace_id,
        name,
        fingerprint,
        salt,
        nonce,
        bytes(_TAG_BYTES),
    )


def _put_head(view: memoryview, fields: bytes, tag: bytes, clear_table: bytes) -> None:
    whole = fields[:-_TAG_BYTES] + tag
    table_check = xxhash.xxh3_64_intdigest(clear_table)
    view[: len(whole)] = whole
    checked = whole + table_check.to_bytes(8, "little")
    view[len(whole) : len(whole) + _CHECK.size] = _CHECK.pack(
        table_check, xxhash.xxh3_64_intdigest(checked)
    )


def _read_head(
    raw: memoryview, head: ExtentHead, name: BlockHash, block_count: int
) -> tuple[_Found, int, bool]:
    if raw.nbytes < HEAD_BYTES:
        raise BadExtentError(f"{raw.nbytes} bytes are no extent")
    whole = bytes(raw[: _HEAD.size])
    table_check, check = _CHECK.unpack(raw[_HEAD.size : _HEAD.size + _CHECK.size])
    magic, format_, flags, generation, count, table_bytes, block_bytes, namespace, last, *rest = (
        _HEAD.unpack(whole)
    )
    if magic != _MAGIC or format_ != FORMAT:
        raise BadExtentError("it does not begin as an extent does")
    if xxhash.xxh3_64_intdigest(whole + table_check.to_bytes(8, "little")) != check:
        raise BadExtentError("the head does not match its checksum")
    if any(raw[_HEAD.size + _CHECK.size : HEAD_BYTES]):
        raise BadExtentError("the head has bytes that say nothing")
    if (namespace, last, generation) != (head.namespace_id, name, head.generation):
        raise BadExtentError("it is another extent")
    if (count, block_bytes) != (block_count, head.block_bytes):
        raise BadExtentError("its blocks are of another number or size")
    if raw.nbytes != HEAD_BYTES + table_bytes + count * block_bytes:
        raise BadExtentError("it is not as long as its head says")
    fingerprint, salt, nonce, tag = rest
    fields = whole[:-_TAG_BYTES] + bytes(_TAG_BYTES)
    found = _Found(fields, fingerprint, salt, nonce, tag, table_check)
    return found, table_bytes, bool(flags & _SEALED)


# -- body ------------------------------------------------------------------------------------------


def _read_payloads(
    payloads: memoryview,
    block_bytes: int,
    block_count: int,
    into: Mapping[int, memoryview],
    step: CipherContext | None,
    table: bytes,
) -> list[ExtentBlock]:
    scratch: memoryview | None = None
    for position in range(block_count):
        stored = payloads[position * block_bytes : (position + 1) * block_bytes]
        target = into.get(position)
        if step is None:
            if target is not None:
                target[:] = stored
            continue
        if target is None:
            # The tag is over all of it.
            scratch = scratch or memoryview(bytearray(block_bytes))
            target = scratch
        step.update_into(stored, target)
    if step is not None:
        try:
            step.finalize()
        except InvalidTag:
            raise BadExtentError("the tag does not match") from None
    return _read_table(table, block_count)


def _table(parent: BlockHash, blocks: Sequence[ExtentBlock]) -> bytes:
    owners = list(dict.fromkeys(block.owner for block in blocks))
    numbers = {owner: number for number, owner in enumerate(owners)}
    parts = [bytes(parent)]
    for each in blocks:
        flags = _UNIT_END if each.unit_end else 0
        parts.append(
            _ROW.pack(
                each.block_hash, each.checksum, each.expire_second, flags, numbers[each.owner]
            )
        )
    parts.append(_COUNT.pack(len(owners)))
    for owner in owners:
        path = owner.encode()
        assert len(path) <= OWNER_BYTES_MAX
        parts += [_COUNT.pack(len(path)), path]
    return b"".join(parts)


def _read_table(table: bytes, block_count: int) -> list[ExtentBlock]:
    try:
        rows_end = HASH_BYTES + block_count * _ROW.size
        owners = _read_owners(table, rows_end)
        rows = _ROW.iter_unpack(table[HASH_BYTES:rows_end])
        blocks = [
            ExtentBlock(BlockHash(name), checksum, until, bool(flags & _UNIT_END), owners[owner])
            for name, checksum, until, flags, owner in rows
        ]
    except (struct.error, IndexError, UnicodeDecodeError):
        raise BadExtentError("the table is no table") from None
    if len(blocks) != block_count:
        raise BadExtentError("the table has another number of blocks")
    return blocks


def _read_owners(table: bytes, at: int) -> list[str]:
    (count,) = _COUNT.unpack_from(table, at)
    at += _COUNT.size
    owners = []
    for _ in range(count):
        (size,) = _COUNT.unpack_from(table, at)
        at += _COUNT.size
        owners.append(table[at : at + size].decode())
        at += size
    if at != len(table):
        raise BadExtentError("the table has bytes that say nothing")
    return owners
