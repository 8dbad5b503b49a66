"""KeyRing: the data keys of a store, who may use which, and their destruction.

    prepare --> a key for every organisation that is about to be written, durable before its first
                record, counted before it is used
    destroy --> the keys of an organisation, all of them; durable on return

Invariants: a key encrypts less than `RECORDS_MAX` records, whatever crashes (what may be used is
written down ahead, `_STEP` at a time), then the organisation gets another; a key that was destroyed
opens nothing in this process from that moment on, also when the disk refuses. Written by the
opening thread, then by the writer's; `find` and `view` are for any thread. How it is opened:
key_opening.py.
"""

import contextlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from storage.env import Env
from storage.errors import TierIOError
from storage.ssd.block_rows import BlockRows, key_numbers, owner_numbers
from storage.ssd.encryption import (
    KEY_BYTES,
    KEY_ID_BYTES,
    NONCE_BYTES,
    DataKey,
    WrongTagError,
    bound_bytes,
    organisation_of,
)
from storage.ssd.format import RecordHeader
from storage.ssd.key_file import (
    KEY_NUMBER_MAX,
    KeyFile,
    MasterKey,
    WrappedKey,
    pack_key_file,
)
from storage.tier import BlockRecord

__all__ = ["NO_ENCRYPTION", "Destroyed", "Encryption", "EncryptionView", "KeyRing", "no_keys"]

RECORDS_MAX = 1 << 31
"""Under one key: random nonces of 96 bits are safe for twice as many."""
_STEP = 1 << 18
"""Records that are counted ahead: one write of the file for each, and lost with a restart."""


@dataclass(frozen=True, slots=True, repr=False)
class Encryption:
    """What the owner of a tier asks for."""

    master_keys: tuple[bytes, ...] = ()
    """Of 32 bytes; the first one wraps, the others only open. None: nothing is encrypted."""
    give_up: bool = False
    """Blocks that cannot be decrypted are dropped at open, where it would be refused."""


NO_ENCRYPTION = Encryption()


@dataclass(frozen=True, slots=True)
class EncryptionView:
    """For whoever looks."""

    enabled: bool
    key_count: int = 0
    destroyed_count: int = 0
    """Keys that were destroyed on purpose in the store's life."""
    master: str = ""
    """Fingerprint of the master key."""
    clear_segment_count: int = 0
    """Segments that may hold bytes in clear, of blocks that are there or are not."""


@dataclass(frozen=True, slots=True)
class Destroyed:
    """What `destroy` did."""

    key_ids: tuple[bytes, ...]
    durable: bool
    """False: the disk did not take it, and a restart may bring them back."""
    problem: str = ""


@dataclass
class _Held:
    key: DataKey
    wrapped: WrappedKey
    used: int


class KeyRing:
    """The keys. `save` replaces the file, durable on return, or raises OSError."""

    def __init__(
        self,
        env: Env,
        master: MasterKey | None,
        file: KeyFile,
        keys: Collection[tuple[DataKey, WrappedKey]],
        save: Callable[[bytes], None],
    ) -> None:
        """`master`: None where nothing is encrypted. `keys` are the file's, opened."""
        self._env = env
        self._master = master
        self._file = file
        self._save = save
        # What a record was promised for may have been used before a crash.
        self._held = [_Held(key, wrapped, wrapped.records_max) for key, wrapped in keys]
        self._by_id: Mapping[bytes, DataKey] = {}
        self._unsaved = False
        """The file on the disk is another: a write of it failed, or is still to come. No new key is
        used before, and one that was destroyed may still be there."""
        self._publish()

    @property
    def enabled(self) -> bool:
        """New records are encrypted."""
        return self._master is not None

    # --- any thread -------------------------------------------------------------------------------

    def find(self, key_id: bytes) -> DataKey | None:
        """None: it was destroyed, or never was here."""
        return self._by_id.get(key_id)

    def unmasked(self, header: RecordHeader) -> RecordHeader:
        """The header with the checksum as it is. Where the key is not here, or is another
        organisation's, as it was, with key number 0."""
        encrypted = header.encrypted
        if encrypted is None:
            return header
        key = self.find(encrypted.key_id)
        if key is None or key.organisation != organisation_of(header.owner):
            return header
        encrypted = key.encrypted(encrypted.nonce, encrypted.tag, header.record.block_hash)
        checksum = header.record.checksum ^ encrypted.mask
        return header._replace(
            record=header.record._replace(checksum=checksum),
            location=header.location._replace(checksum=checksum),
            encrypted=encrypted,
        )

    def unmasked_as(self, header: RecordHeader, record: BlockRecord) -> RecordHeader:
        """The same where it is known which checksum there has to be, at a part of the cost: the tag
        is over that checksum, so that another's bytes do not get through."""
        encrypted = header.encrypted
        assert encrypted is not None
        key = self.find(encrypted.key_id)
        if key is None or key.organisation != organisation_of(header.owner):
            return header
        mask = header.record.checksum ^ record.checksum
        return header._replace(
            record=header.record._replace(checksum=record.checksum),
            location=header.location._replace(checksum=record.checksum),
            encrypted=encrypted._replace(mask=mask, key_number=key.number),
        )

    def decrypt(self, header: RecordHeader, stored: memoryview, into: memoryview) -> None:
        """The stored bytes of an encrypted record, whose header is unmasked; `into` may be the
        same memory. Raises WrongTagError, also where the key is not here."""
        assert header.encrypted is not None
        key = self.find(header.encrypted.key_id) if header.encrypted.key_number else None
        if key is None:
            raise WrongTagError("its data key is not here")
        record, owner = header.record, header.owner
        bound = bound_bytes(record, stored.nbytes, header.codec, owner, key.key_id)
        key.decrypt(header.encrypted, bound, stored, into)

    # --- opening ----------------------------------------------------------------------------------

    def unmasked_rows(self, rows: BlockRows, owners: Mapping[int, str]) -> BlockRows:
        """Those in clear and those whose key is here, with the checksums as they are. `owners` by
        number."""
        numbers, whose = key_numbers(rows), owner_numbers(rows)
        if not numbers.any():
            return rows
        readable: NDArray[np.bool_] = numbers == 0
        checksums = rows["checksum"].copy()
        held = {(each.key.organisation, each.key.number): each.key for each in self._held}
        pairs = whose.astype(np.uint64) << np.uint64(8) | numbers
        for pair in np.unique(pairs[~readable]).tolist():
            owner = owners.get(pair >> 8, "")
            key = held.get((organisation_of(owner), pair & 0xFF))
            if key is not None:
                at = np.flatnonzero(pairs == pair)
                checksums[at] ^= key.masks(rows.hashes[at])
                readable[at] = True
        return BlockRows({**rows.columns, "checksum": checksums}).chosen(readable)

    def keep(self, used: Collection[tuple[str, int]]) -> None:
        """Drops all keys but those of these organisations and numbers: no block needs the others.
        Raises OSError."""
        unused = [
            each for each in self._held if (each.key.organisation, each.key.number) not in used
        ]
        if unused:
            self._held = [each for each in self._held if each not in unused]
            self._write()

    def note_clear(self, generations: Mapping[int, int], segment_count: int) -> None:
        """Segments that were written before anything was encrypted, and their generations; taken
        the first time in the life of a file. Raises OSError."""
        if not self.enabled:
            return
        before = self._file.clear_segments
        noted = generations if before is None else before
        noted = {each: noted[each] for each in noted if each < segment_count}
        if noted != before:
            self._file = replace(self._file, clear_segments=noted)
            self._write()

    # --- writing ----------------------------------------------------------------------------------

    def prepare(self, counts: Mapping[str, int]) -> dict[str, DataKey]:
        """A key for each organisation, good for so many records; they are counted as used. Raises
        TierIOError."""
        chosen = {name: self._current(name) for name in counts}
        for name, count in counts.items():
            held = chosen[name]
            if held is None or held.used + count > RECORDS_MAX:
                held = chosen[name] = self._made(name)
                self._held.append(held)
                self._unsaved = True
            held.used += count
            if held.used > held.wrapped.records_max:
                ahead = min(RECORDS_MAX, held.used + _STEP)
                held.wrapped = replace(held.wrapped, records_max=ahead)
                self._unsaved = True
        if self._unsaved:
            try:
                self._write()
            except OSError as error:
                raise _io_error(error) from error
        return {name: held.key for name, held in chosen.items() if held is not None}

    def nonce(self) -> bytes:
        return self._env.random_bytes(NONCE_BYTES)

    def destroy(self, organisation: str | None) -> Destroyed:
        """Destroys the keys of one organisation ("": nobody's), None for all."""
        gone = [each for each in self._held if organisation in (None, each.key.organisation)]
        self._held = [each for each in self._held if each not in gone]
        count = self._file.destroyed_count + len(gone)
        self._file = replace(self._file, destroyed_count=count)
        self._publish()
        ids = tuple(each.key.key_id for each in gone)
        if gone or self._unsaved:
            self._unsaved = True
            try:
                self._write()
            except OSError as error:
                return Destroyed(ids, durable=False, problem=str(error))
        return Destroyed(ids, durable=True)

    def those_of(self, organisation: str | None) -> tuple[bytes, ...]:
        """Ids of what `destroy` would destroy."""
        return tuple(
            each.key.key_id for each in self._held if organisation in (None, each.key.organisation)
        )

    def filled_anew(self, segment_id: int, generation: int) -> bool:
        """Whether the segment may hold bytes in clear, but none in records of this generation."""
        noted = (self._file.clear_segments or {}).get(segment_id)
        return noted is not None and generation > noted

    def cleaned(self, segment_id: int) -> None:
        """All of the segment has been overwritten. Where the disk does not take that now, it counts
        as not overwritten at the next open, which is the safe side."""
        left = {i: g for i, g in (self._file.clear_segments or {}).items() if i != segment_id}
        self._file = replace(self._file, clear_segments=left)
        self._unsaved = True
        with contextlib.suppress(OSError):
            self._write()

    # --- below ------------------------------------------------------------------------------------

    def _current(self, organisation: str) -> _Held | None:
        found = (each for each in reversed(self._held) if each.key.organisation == organisation)
        return next(found, None)

    def _made(self, organisation: str) -> _Held:
        """Raises TierIOError where the organisation has as many keys as can be told apart."""
        assert self._master is not None
        taken = {x.key.number for x in self._held if x.key.organisation == organisation}
        last = self._file.last_number
        order = (1 + (last + step) % KEY_NUMBER_MAX for step in range(KEY_NUMBER_MAX))
        number = next((each for each in order if each not in taken), 0)
        if not number:
            raise TierIOError(
                f"an organisation has {KEY_NUMBER_MAX} data keys in use: open the SSD tier again,"
                " which drops those that no block needs"
            )
        self._file = replace(self._file, last_number=number)
        draw = self._env.random_bytes
        key = DataKey(draw(KEY_ID_BYTES), organisation, number, draw(KEY_BYTES))
        now = self._env.wall_seconds()
        wrapped = self._master.wrap(self._file.store_id, key, now, 0, draw)
        return _Held(key, wrapped, 0)

    def _write(self) -> None:
        """Durable on return, and only then is a new key found by anybody. Raises OSError."""
        keys = tuple(each.wrapped for each in self._held)
        self._file = replace(self._file, keys=keys)
        self._save(pack_key_file(self._file))
        self._unsaved = False
        self._publish()

    def _publish(self) -> None:
        self._by_id = {each.key.key_id: each.key for each in self._held}
        self.view = EncryptionView(
            enabled=self.enabled,
            key_count=len(self._held),
            destroyed_count=self._file.destroyed_count,
            master=self._master.fingerprint if self._master is not None else "",
            clear_segment_count=len(self._file.clear_segments or ()),
        )
        """Frozen."""


def no_keys(env: Env) -> KeyRing:
    """Of a store where nothing is encrypted."""

    def save(raw: bytes) -> None:
        raise AssertionError("there is no file of keys")

    return KeyRing(env, None, KeyFile(b""), (), save)


def _io_error(error: OSError) -> TierIOError:
    return TierIOError(f"the file of data keys cannot be written: {error}", errno=error.errno)
