"""Block hashes never change: both ends, every machine, for ever.

`KVTIER_REWRITE_GOLDEN=1` writes the file anew; doing so needs a new KEY_SCHEME_VERSION.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from kvtier.keys import (
    KEY_SCHEME_VERSION,
    PUBLIC_SALT,
    PUBLIC_SCOPE,
    ChainScope,
    Namespace,
    ScopeSalt,
    block_chain,
    payload_checksum,
)
from kvtier.scopes import ScopePath, chain_scope, scope_salt

FILE = Path(__file__).with_name("keys.json")

PLAIN = Namespace(
    weights="sha256:00",
    layout="L2:k2x16,v2x16",
    dtype="float32",
    block_tokens=4,
    rope="theta=10000",
    engine="test/1",
)
FULL = Namespace(
    weights="sha256:ff",
    layout="L1:c64,r16",
    dtype="bfloat16",
    block_tokens=64,
    rope="yarn factor=4",
    engine="test/2",
    adapter="lora:ü",
    epoch=3,
)
SECRET = bytes(range(32))


def compute() -> dict[str, Any]:
    private = scope_salt(SECRET, "org", "project")
    other = scope_salt(SECRET, "org", "other")
    tokens = list(range(18))
    big = [0, 1, 2**16, 2**32 - 1]
    return {
        "key_scheme_version": KEY_SCHEME_VERSION,
        "namespace_id_plain": PLAIN.id.hex(),
        "namespace_id_full": FULL.id.hex(),
        "salt_org_project": private.hex(),
        "salt_org_other": other.hex(),
        "root_public": PLAIN.root(PUBLIC_SALT).hex(),
        "root_private": PLAIN.root(private).hex(),
        "chain_public": [h.hex() for h in block_chain(PLAIN, PUBLIC_SCOPE, tokens)],
        "chain_private": [h.hex() for h in block_chain(PLAIN, ChainScope((private,)), tokens)],
        "chain_other": [h.hex() for h in block_chain(PLAIN, ChainScope((other,)), tokens)],
        "chain_public_prefix_2": [
            h.hex() for h in block_chain(PLAIN, ChainScope((PUBLIC_SALT, private), (2,)), tokens)
        ],
        "chain_extreme_ids": [h.hex() for h in block_chain(PLAIN, ChainScope((private,)), big)],
        "payload_checksums": [
            f"{payload_checksum(h, bytes(range(256)) * 20):016x}"
            for h in block_chain(PLAIN, PUBLIC_SCOPE, tokens)
        ],
        **ladder(tokens),
        "chain_64": [h.hex() for h in block_chain(FULL, ChainScope((private,)), list(range(200)))],
    }


def ladder(tokens: list[int]) -> dict[str, Any]:
    """One user's chains, narrowing once at every rung, at some, and at none."""
    user = ScopePath("org", "project", "usér")
    return {
        "salts_of_the_ladder": [salt.hex() for salt in chain_scope(SECRET, user, (0, 0, 0)).salts],
        "chains_of_the_ladder": {
            " ".join(map(str, ends)): [
                h.hex() for h in block_chain(PLAIN, chain_scope(SECRET, user, ends), tokens)
            ]
            for ends in ((0, 0, 0), (1, 2, 3), (0, 1, 1), (1, 1, 4), (2, 2, 2), (4, 4, 4))
        },
    }


def test_block_hashes_equal_the_golden_vectors() -> None:
    if os.environ.get("KVTIER_REWRITE_GOLDEN"):
        FILE.write_text(json.dumps(compute(), indent=1) + "\n")
    assert compute() == json.loads(FILE.read_text())


def test_a_chain_can_be_recomputed_from_the_written_rule_alone() -> None:
    import hashlib
    import struct

    salt = ScopeSalt(b"s" * 32)
    chain = block_chain(PLAIN, ChainScope((PUBLIC_SALT, salt), (1,)), [1, 2, 3, 4, 5, 6, 7, 8])
    root = hashlib.sha256(PLAIN.encode() + struct.pack("<I", 0)).digest()
    first = hashlib.sha256(root + struct.pack("<4I", 1, 2, 3, 4)).digest()
    second = hashlib.sha256(first + salt + struct.pack("<4I", 5, 6, 7, 8)).digest()
    assert chain == [first, second]


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "x"},
        {"layout": "x"},
        {"dtype": "x"},
        {"block_tokens": 5},
        {"rope": "x"},
        {"engine": "x"},
        {"adapter": "x"},
        {"epoch": 1},
    ],
)
def test_every_field_of_the_namespace_changes_every_hash(change: dict[str, Any]) -> None:
    fields = {name: getattr(PLAIN, name) for name in PLAIN.__slots__}
    other = Namespace(**(fields | change))
    assert other.id != PLAIN.id
    assert other.root(PUBLIC_SALT) != PLAIN.root(PUBLIC_SALT)
