"""What a key does to a record, the bytes of its header, and the file of keys."""

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
import xxhash

from storage.codec import Codec
from storage.errors import (
    FormatTooNewError,
)
from storage.ssd.encryption import DataKey, WrongTagError, bound_bytes, organisation_of
from storage.ssd.format import (
    BadPageError,
    Marker,
    pack_marker,
    pack_record_header,
    parse_marker,
    parse_record_header,
    write_record_header,
)
from storage.ssd.key_file import (
    BadKeyFileError,
    KeyFile,
    MasterKey,
    pack_key_file,
    parse_key_file,
)
from tests.ssd.blocks import block
from tests.ssd.encrypted import MASTER, OTHER_MASTER
from tests.unit.ssd.test_ssd_format import OFFSET, SEGMENT, header

# --- a record ---------------------------------------------------------------------------------


def data_key(organisation: str = "acme") -> DataKey:
    return DataKey(bytes(16), organisation, 1, bytes(range(32)))


def test_what_was_encrypted_comes_back_also_in_place() -> None:
    key, plain = data_key(), memoryview(bytearray(random.Random(1).randbytes(9000)))
    other = memoryview(bytearray(9000))
    tag = key.encrypt(b"n" * 12, b"bound", plain, other)
    encrypted = key.encrypted(b"n" * 12, tag, bytes(32))
    back = memoryview(bytearray(9000))
    key.decrypt(encrypted, b"bound", other, back)
    assert back == plain
    before = bytes(plain)
    assert key.encrypt(b"n" * 12, b"bound", plain, plain) == tag
    assert plain == other
    key.decrypt(encrypted, b"bound", plain, plain)
    assert plain == before


def test_bytes_of_another_block_owner_key_or_codec_do_not_open() -> None:
    key, record = data_key(), block("a").record
    plain = memoryview(bytearray(b"x" * 100))
    target = memoryview(bytearray(100))
    ways = [
        bound_bytes(record, 100, Codec(0), "acme", bytes(16)),
        bound_bytes(record, 100, Codec(1), "acme", bytes(16)),
        bound_bytes(record, 99, Codec(0), "acme", bytes(16)),
        bound_bytes(record, 100, Codec(0), "acme/x", bytes(16)),
        bound_bytes(record, 100, Codec(0), "acme", b"k" * 16),
        bound_bytes(block("b").record, 100, Codec(0), "acme", bytes(16)),
        bound_bytes(record._replace(checksum=1), 100, Codec(0), "acme", bytes(16)),
    ]
    for one, other in itertools.permutations(ways, 2):
        tag = key.encrypt(b"n" * 12, one, plain, target)
        encrypted = key.encrypted(b"n" * 12, tag, record.block_hash)
        with pytest.raises(WrongTagError):
            key.decrypt(encrypted, other, target, memoryview(bytearray(100)))


def test_masks_of_many_names_are_those_of_each() -> None:
    key = data_key()
    names = [block(i).hash for i in range(7)]
    column = np.frombuffer(b"".join(names), "V32")
    assert key.masks(column).tolist() == [key.mask(name) for name in names]
    assert len({key.mask(name) for name in names}) == 7


def test_the_bytes_of_an_encrypted_header_are_frozen() -> None:
    plain = header()._replace(owner="acme")
    encrypted = data_key().encrypted(b"n" * 12, b"t" * 16, plain.record.block_hash)
    page = memoryview(bytearray(pack_record_header(plain, SEGMENT.seed)))
    before = bytes(page)
    write_record_header(plain._replace(encrypted=encrypted), SEGMENT.seed, page)
    assert (before[28], page[28]) == (0, 1)
    assert bytes(page[1712:1756]) == bytes(16) + b"n" * 12 + b"t" * 16
    masked = int.from_bytes(page[64:72], "little")
    assert masked == plain.record.checksum ^ encrypted.mask
    changed = {i for i in range(4088) if page[i] != before[i]}
    assert changed <= {28, *range(64, 72), *range(1712, 1756)}
    found = parse_record_header(page, SEGMENT, OFFSET)
    assert found.encrypted == encrypted._replace(mask=0, key_number=0)
    assert found.record.checksum == masked
    write_record_header(plain, SEGMENT.seed, page)
    assert bytes(page) == before, "nothing is left of it"


def test_a_way_of_encrypting_that_is_not_known_is_refused() -> None:
    page = bytearray(pack_record_header(header(), SEGMENT.seed))
    page[28] = 2
    page[4088:] = xxhash.xxh3_64_intdigest(page[:4088], SEGMENT.seed).to_bytes(8, "little")
    with pytest.raises(BadPageError, match="encryption 2"):
        parse_record_header(memoryview(page), SEGMENT, OFFSET)


def test_the_marker_keeps_out_who_does_not_know_keys() -> None:
    raw = pack_marker(Marker(3, 4096))
    assert b'"format": 3' in raw
    assert parse_marker(raw).encrypted
    assert not parse_marker(pack_marker(Marker(2, 4096))).encrypted
    with pytest.raises(FormatTooNewError):
        parse_marker(pack_marker(Marker(4, 4096)))
    for bad in (raw.replace(b"3", b"2"), pack_marker(Marker(2, 4096)).replace(b"2", b"3")):
        with pytest.raises(BadPageError, match="encrypted"):
            parse_marker(bad)


@pytest.mark.parametrize(("owner", "whose"), [("", ""), ("a", "a"), ("a/b/c", "a")])
def test_an_owner_has_the_key_of_its_organisation(owner: str, whose: str) -> None:
    assert organisation_of(owner) == whose


# --- the file of keys ---------------------------------------------------------------------------


def key_file() -> KeyFile:
    draw = random.Random(3).randbytes
    master = MasterKey(MASTER)
    keys = [DataKey(draw(16), name, i + 1, draw(32)) for i, name in enumerate(["", "acmé"])]
    wrapped = [master.wrap(b"s" * 16, key, 1.5, 7, draw) for key in keys]
    return KeyFile(b"s" * 16, tuple(wrapped), 2, 3, {4: 1, 0: 9})


def test_a_file_of_keys_parses_as_it_was_packed() -> None:
    file = key_file()
    assert parse_key_file(pack_key_file(file)) == file
    assert parse_key_file(pack_key_file(KeyFile(b"s" * 16))) == KeyFile(b"s" * 16)


def test_no_damaged_file_of_keys_is_believed() -> None:
    raw = pack_key_file(key_file())
    for at in range(len(raw)):
        bad = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        try:
            found = parse_key_file(bad)
        except BadKeyFileError:
            continue
        # The last line feed alone may be another byte: no word of the file is.
        assert found == key_file()
        assert at == len(raw) - 1
    for end in range(len(raw) - 1):
        with pytest.raises(BadKeyFileError):
            parse_key_file(raw[:end])


def test_a_wrapped_key_does_not_open_elsewhere() -> None:
    master, (wrapped, other) = MasterKey(MASTER), key_file().keys
    assert master.unwrap(b"s" * 16, wrapped).organisation == ""
    for bad in (
        replace(wrapped, organisation="acme"),
        replace(wrapped, number=3),
        replace(wrapped, key_id=b"i" * 16),
        replace(wrapped, wrapped=other.wrapped),
        replace(wrapped, nonce=other.nonce),
    ):
        with pytest.raises(BadKeyFileError):
            master.unwrap(b"s" * 16, bad)
    with pytest.raises(BadKeyFileError):
        master.unwrap(b"S" * 16, wrapped)
    with pytest.raises(BadKeyFileError):
        MasterKey(OTHER_MASTER).unwrap(b"s" * 16, wrapped)
